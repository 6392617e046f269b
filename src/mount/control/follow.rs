//! The events of all daemons of this user, for somebody who stays longer than a daemon does.
//!
//! A daemon that ends is no end of its mount: another one may go on with it in a moment, after a
//! crash as after an upgrade, and has another socket. So the sockets are looked at again and again,
//! and it is over only when none of the mounts that were followed is there any more.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{Instant, Interval, MissedTickBehavior};

use super::client::{self, Socket};
use crate::mount::mountinfo::{Device, MountTable};

/// How often somebody looks for daemons that have come.
const LOOK: Duration = Duration::from_millis(250);

/// How long a mount may be without a daemon: more than the longest pause between a keeper's attempts,
/// and what a daemon takes to get ready.
const PATIENCE: Duration = Duration::from_secs(15);

/// Listens to all daemons, also to those that come later.
pub struct Follower {
    runtime_dir: PathBuf,
    followed: Vec<(Socket, JoinHandle<()>)>,
    /// What the followed daemons serve, or served.
    mounts: Vec<Device>,
    sender: mpsc::Sender<String>,
    lines: mpsc::Receiver<String>,
    ticks: Interval,
    /// When somebody was last followed.
    heard: Instant,
}

impl Follower {
    /// Listens to the daemons that are there; `None` if none answers.
    ///
    /// # Errors
    ///
    /// Those of [`client::sockets`].
    pub async fn start(runtime_dir: &Path) -> io::Result<Option<Self>> {
        let (sender, lines) = mpsc::channel(16);
        let mut ticks = tokio::time::interval(LOOK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut this = Self {
            runtime_dir: runtime_dir.to_owned(),
            followed: Vec::new(),
            mounts: Vec::new(),
            sender,
            lines,
            ticks,
            heard: Instant::now(),
        };
        this.look().await?;
        Ok((!this.followed.is_empty()).then_some(this))
    }

    /// The next event as a line of JSON; `None` when the last mount is gone, or nobody has served
    /// it for some seconds.
    ///
    /// # Errors
    ///
    /// When the sockets or the table of mounts cannot be read any more.
    pub async fn next_line(&mut self) -> io::Result<Option<String>> {
        loop {
            tokio::select! {
                biased;
                Some(line) = self.lines.recv() => return Ok(Some(line)),
                _ = self.ticks.tick() => {
                    self.look().await?;
                    if self.is_over()? {
                        return Ok(None);
                    }
                }
            }
        }
    }

    /// Begins to listen to whoever has come, and forgets whoever has gone.
    async fn look(&mut self) -> io::Result<()> {
        self.followed.retain(|(_, reader)| !reader.is_finished());
        let mut sockets = client::sockets(&self.runtime_dir)?;
        sockets.retain(|socket| self.followed.iter().all(|(known, _)| known != socket));
        let asked = sockets.into_iter().map(|socket| async move {
            let status = socket.status().await.ok()?;
            let lines = socket.events().await.ok()?;
            Some((socket, status, lines))
        });
        let answers = futures_util::future::join_all(asked).await;
        for (socket, status, mut lines) in answers.into_iter().flatten() {
            let (dir, device) = (status.mountpoint.display(), status.mount.device);
            tracing::info!("waiting for names to move in {dir}");
            let sender = self.sender.clone();
            let reader = tokio::spawn(async move {
                while let Ok(Some(line)) = lines.next_line().await {
                    if sender.send(line).await.is_err() {
                        return;
                    }
                }
            });
            self.followed.push((socket, reader));
            if !self.mounts.contains(&device) {
                self.mounts.push(device);
            }
        }
        if !self.followed.is_empty() {
            self.heard = Instant::now();
        }
        Ok(())
    }

    fn is_over(&self) -> io::Result<bool> {
        if !self.followed.is_empty() || !self.lines.is_empty() {
            return Ok(false);
        }
        let table = MountTable::read()?;
        let is_left = |device: &Device| table.iter().any(|mount| mount.id.device == *device);
        Ok(self.heard.elapsed() > PATIENCE || !self.mounts.iter().any(is_left))
    }
}
