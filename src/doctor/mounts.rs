//! The mounts that are there, and the directory that one is to be made on.

use std::fs;
use std::path::Path;
use std::time::Duration;

use super::{Area, Finding, Probe};
use crate::mount::mountinfo::Mount;
use crate::mount::touch::Liveness;
use crate::mount::{MARKER, is_marked};

/// How long all mounts together may take to answer.
const PATIENCE: Duration = Duration::from_millis(400);

pub(super) fn check(probe: &Probe) -> Vec<Finding> {
    let mut findings = existing(probe);
    findings.push(mountpoint(probe));
    findings.extend(propagation(probe));
    findings
}

/// Asks every mount of ours, all at once.
fn existing(probe: &Probe) -> Vec<Finding> {
    let mounts: Vec<&Mount> = probe.table.iter().filter(|m| m.is_musherfs()).collect();
    if mounts.is_empty() {
        return vec![Finding::ok("mounts", "nothing of musherfs is mounted")];
    }
    std::thread::scope(|scope| {
        let asked: Vec<_> = mounts
            .iter()
            .map(|mount| {
                let ask = &probe.ask;
                scope.spawn(move || ask(&mount.mountpoint, PATIENCE))
            })
            .collect();
        mounts
            .iter()
            .zip(asked)
            .map(|(mount, answer)| judge(&mount.mountpoint, answer.join().ok()))
            .collect()
    })
}

fn judge(dir: &Path, liveness: Option<Liveness>) -> Finding {
    let dir = dir.display();
    match liveness {
        Some(Liveness::Alive) => Finding::ok("mounts", format!("{dir} answers")),
        Some(Liveness::Dead) => Finding::fail(
            "stale-mount",
            Area::Machine,
            format!(
                "the daemon of {dir} is gone; whoever reads there gets \"Transport endpoint is not connected\""
            ),
            format!("`musherfs umount {dir}`, then mount again"),
        ),
        _ => Finding::fail(
            "stuck-mount",
            Area::Time,
            format!("{dir} does not answer; its daemon is stopped or stuck"),
            format!("`musherfs umount --force {dir}` ends it, and releases whoever waits there"),
        ),
    }
}

fn mountpoint(probe: &Probe) -> Finding {
    const ID: &str = "mountpoint";
    let path = &probe.mountpoint;
    let dir = path.display();
    let broken =
        |message: String, remedy: String| Finding::fail(ID, Area::Machine, message, remedy);
    if let Some(mount) = probe.table.iter().rfind(|mount| mount.mountpoint == *path) {
        if mount.is_musherfs() {
            return Finding::ok(ID, format!("{dir} is mounted"));
        }
        return broken(
            format!("a filesystem of type {} is mounted on {dir}", mount.fs_type),
            "choose another directory".to_owned(),
        );
    }
    match fs::read_dir(path) {
        Ok(entries) => {
            let mut others = entries
                .flatten()
                .map(|entry| entry.file_name())
                .filter(|name| name != MARKER);
            match others.next() {
                Some(name) => broken(
                    format!("{dir} is not empty: it has {}", name.display()),
                    "choose an empty directory, or move what is in it away".to_owned(),
                ),
                None if is_marked(path) => Finding::ok(
                    ID,
                    format!("{dir} waits for a mount, and says so ({MARKER})"),
                ),
                None => Finding::ok(ID, format!("{dir} can be mounted on")),
            }
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => missing(path),
        Err(error) => broken(
            format!("{dir} cannot be mounted on: {error}"),
            "choose a directory that you own".to_owned(),
        ),
    }
}

/// `mount` creates the directory, if it may.
fn missing(path: &Path) -> Finding {
    const ID: &str = "mountpoint";
    let above = path.ancestors().find(|above| above.exists());
    let above = above.unwrap_or(Path::new("/"));
    let writable = rustix::fs::access(above, rustix::fs::Access::WRITE_OK).is_ok();
    if writable && above.is_dir() {
        return Finding::ok(ID, format!("{} will be created", path.display()));
    }
    Finding::fail(
        ID,
        Area::Machine,
        format!(
            "{} is missing, and this user may not create it in {}",
            path.display(),
            above.display()
        ),
        format!(
            "`sudo install -d -o $USER {}`, or mount on another directory, such as ~/musher",
            path.display()
        ),
    )
}

fn propagation(probe: &Probe) -> Option<Finding> {
    const ID: &str = "propagation";
    let above = probe.mountpoint.parent().unwrap_or(&probe.mountpoint);
    let covering = probe.table.covering(above)?;
    let on = covering.mountpoint.display();
    Some(if covering.shared {
        Finding::ok(
            ID,
            "a mount made again reaches containers that bind it with rslave",
        )
    } else {
        // Nothing is wrong as long as no container is to see it.
        Finding::info(
            ID,
            format!(
                "{on} is a private mount: containers that run already do not see a mount made again"
            ),
            format!("for containers, `mount --make-shared {on}` as root before they start"),
        )
    })
}
