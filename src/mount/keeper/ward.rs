//! A daemon's view of the keeper whose ward it is.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use rustix::event::{PollFd, PollFlags, poll};
use tokio::sync::mpsc;
use tracing::{debug, warn};

use super::Signals;
use super::link::{Link, NUMBERS, PROTOCOL, ToDaemon, ToKeeper};
use crate::fuse::Handshake;
use crate::mount::background::null;
use crate::mount::resume::Placeholder;
use crate::mount::{Failure, Mounted};

/// A daemon that has been started by a keeper and serves nothing yet.
#[derive(Debug)]
pub struct Ward {
    link: Link,
    placeholder: Placeholder,
}

/// What a daemon is given to serve.
#[derive(Debug)]
pub struct Given {
    /// The mount.
    pub mounted: Mounted,
    /// What an earlier daemon agreed on with the kernel, if there was one.
    pub handshake: Option<Handshake>,
    /// Where the descriptor goes then.
    pub placeholder: Placeholder,
}

impl Ward {
    /// To be called first thing in the daemon, before any thread.
    ///
    /// # Errors
    ///
    /// When the process was not started by a keeper, or by one of another time; it has been told.
    pub fn take_over() -> io::Result<Self> {
        let link = Link::from_stdin()?;
        Signals::unblock();
        // Fails only for the leader of a process group, which a started child is not.
        let _ = rustix::process::setsid();
        let understood = match link.receive()? {
            Some((ToDaemon::Hello { protocol, numbers }, _)) => {
                protocol == PROTOCOL && numbers == NUMBERS
            }
            _ => false,
        };
        if !understood {
            let message = "this version cannot go on with a mount of that one";
            let _ = link.send(
                &ToKeeper::Failed(Failure {
                    message: message.to_owned(),
                    hint: Some("unmount, and mount again with the new program".to_owned()),
                    exit_code: 6,
                }),
                None,
            );
            return Err(io::Error::other(message));
        }
        Ok(Self {
            link,
            placeholder: Placeholder::reserve()?,
        })
    }

    /// Tells why this daemon will not serve.
    ///
    /// # Errors
    ///
    /// When the keeper is gone.
    pub fn failed(&self, failure: Failure) -> io::Result<()> {
        self.link.send(&ToKeeper::Failed(failure), None)
    }

    /// Tells that everything is there but the mount, and waits for it; `None` if this daemon is not
    /// wanted after all. Blocks as long as the keeper likes.
    ///
    /// # Errors
    ///
    /// When the keeper cannot be understood.
    pub fn wait(self) -> io::Result<Option<(Serving, Given)>> {
        let version = env!("CARGO_PKG_VERSION").to_owned();
        let prepared = ToKeeper::Prepared {
            version,
            stands_by: true,
        };
        self.link.send(&prepared, None)?;
        let mut former = None;
        let (held, fd) = loop {
            match (self.link.receive()?, former) {
                (Some((ToDaemon::Former, Some(process))), None) => former = Some(process),
                (Some((ToDaemon::Serve(held), Some(fd))), None) => break (held, fd),
                (Some((ToDaemon::StandBy(held), Some(fd))), Some(former)) => {
                    if !self.stand_by(&former, &fd)? {
                        return Ok(None);
                    }
                    break (held, fd);
                }
                (Some((ToDaemon::Retire, _)) | None, _) => return Ok(None),
                (Some((other, _)), _) => {
                    return Err(io::Error::other(format!("the keeper said {other:?}")));
                }
            }
        };
        let (mounted, handshake) = held.with_descriptor(fd);
        let given = Given {
            mounted,
            handshake,
            placeholder: self.placeholder,
        };
        Ok(Some((Serving(self.link), given)))
    }
}

impl Ward {
    /// Waits until nobody else serves the mount behind `device`; whether it is to be served then. The
    /// keeper says so, and if that is killed, the end of the `former` daemon does: whoever was told to
    /// retire ends.
    fn stand_by(&self, former: &OwnedFd, device: &OwnedFd) -> io::Result<bool> {
        while !is_gone(device, &self.link)? {
            match self.link.receive()? {
                Some((ToDaemon::Go, _)) => return Ok(true),
                Some((ToDaemon::Retire, _)) => return Ok(false),
                Some((other, _)) => debug!(?other, "an order that means nothing now"),
                None => {
                    warn!("the keeper is gone while this daemon takes over");
                    return Ok(!is_gone(device, former)?);
                }
            }
        }
        Ok(false)
    }
}

/// Waits until `device` has lost its mount, or `other` can be read; whether it is the former.
fn is_gone(device: &OwnedFd, other: &impl AsFd) -> io::Result<bool> {
    let mut polled = [
        // Errors only: that somebody asks for something is none.
        PollFd::new(device, PollFlags::empty()),
        PollFd::new(other, PollFlags::IN),
    ];
    rustix::io::retry_on_intr(|| poll(&mut polled, None))?;
    Ok(!polled[0].revents().is_empty())
}

/// A daemon that has been given a mount.
#[derive(Debug)]
pub struct Serving(Link);

impl Serving {
    /// Tells why the mount is not served.
    ///
    /// # Errors
    ///
    /// When the keeper is gone.
    pub fn failed(&self, failure: Failure) -> io::Result<()> {
        self.0.send(&ToKeeper::Failed(failure), None)
    }

    /// Tells that the mount is served, and listens from now on. Lets go of the terminal and the
    /// working directory.
    ///
    /// A keeper that was killed meanwhile is one that gives no orders: who goes on with a mount does so
    /// without it.
    ///
    /// # Errors
    ///
    /// When it cannot listen; the keeper has not been told then. When that is gone and this is the mount's
    /// first daemon: nobody knows of the mount.
    pub fn ready(self, handshake: Option<Handshake>) -> io::Result<Orders> {
        rustix::process::chdir("/")?;
        let null = null()?;
        rustix::stdio::dup2_stdout(null.as_fd())?;
        rustix::stdio::dup2_stderr(null.as_fd())?;
        let link = Arc::new(self.0);
        let (sender, orders) = mpsc::unbounded_channel();
        let listening = Arc::clone(&link);
        std::thread::Builder::new()
            .name("keeper".to_owned())
            .spawn(move || {
                loop {
                    let order = match listening.receive() {
                        Ok(Some((ToDaemon::Retire, _))) => Order::Retire,
                        Ok(Some((other, _))) => {
                            debug!(?other, "an order that means nothing now");
                            continue;
                        }
                        Ok(None) | Err(_) => return,
                    };
                    if sender.send(order).is_err() {
                        return;
                    }
                }
            })?;
        // Last: who has said so goes on.
        let is_first = handshake.is_some();
        let told = link.send(&ToKeeper::Serving { handshake }, None);
        if is_first {
            told?;
        }
        Ok(Orders { link, orders })
    }
}

/// What a keeper may order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// End, and leave the mount alone.
    Retire,
}

/// The orders of a living keeper.
#[derive(Debug)]
pub struct Orders {
    link: Arc<Link>,
    orders: mpsc::UnboundedReceiver<Order>,
}

impl Orders {
    /// Waits for the next one; `None` when the keeper is gone.
    pub async fn next(&mut self) -> Option<Order> {
        self.orders.recv().await
    }

    /// Asks the keeper to unmount; whether there is one.
    pub fn ask_to_stop(&self, signal: &str) -> bool {
        let signal = signal.to_owned();
        self.link.send(&ToKeeper::Stop { signal }, None).is_ok()
    }
}
