//! A service manager that keeps descriptors, as systemd does; and the service it runs.

use std::collections::HashMap;
use std::fs;
use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};

use rustix::mount::{MountFlags, UnmountFlags};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use rustix::process::Signal;

use crate::keeper_harness::house::{DEADLINE, House, PROGRAM, await_some, kill};

const UNIT: &str = "musherfs-test.service";

#[derive(Default)]
struct Kept(Mutex<HashMap<String, OwnedFd>>, Mutex<Vec<String>>);

pub(crate) struct Manager<'h> {
    house: &'h House,
    socket: PathBuf,
    kept: Arc<Kept>,
    service: Option<Child>,
    groups: PathBuf,
    /// A control group of the unit's name, where one can be made.
    pub(crate) group: Option<PathBuf>,
}

impl<'h> Manager<'h> {
    pub(crate) fn new(house: &'h House) -> Self {
        let socket = house.home.path().join("notify");
        let listener = UnixDatagram::bind(&socket).unwrap();
        let kept = Arc::new(Kept::default());
        let store = Arc::clone(&kept);
        std::thread::spawn(move || while receive(&listener, &store).is_some() {});
        // The hierarchy may not be mounted where it belongs.
        let groups = house.home.path().join("groups");
        fs::create_dir(&groups).unwrap();
        let flags = MountFlags::empty();
        let group = groups.join(UNIT);
        let made = rustix::mount::mount("none", &groups, "cgroup2", flags, None).is_ok()
            && fs::create_dir_all(&group).is_ok();
        Self {
            house,
            socket,
            kept,
            service: None,
            groups,
            group: made.then_some(group),
        }
    }

    /// How many descriptors are kept.
    pub(crate) fn kept(&self) -> usize {
        self.kept.0.lock().unwrap().len()
    }

    /// How often it was told so, such as `READY=1`.
    pub(crate) fn told(&self, line: &str) -> usize {
        let told = self.kept.1.lock().unwrap();
        told.iter().filter(|told| *told == line).count()
    }

    /// Waits until it was told so at least so often.
    pub(crate) fn await_told(&self, line: &str, times: usize) {
        await_some(line, || (self.told(line) >= times).then_some(()));
    }

    pub(crate) fn await_kept(&self, many: usize) {
        await_some("the store", || (self.kept() == many).then_some(()));
    }

    /// Forgets one of them.
    pub(crate) fn lose(&self, name: &str) {
        self.kept.0.lock().unwrap().remove(name).unwrap();
    }

    /// What it was given to keep, in order.
    pub(crate) fn stored(&self) -> Vec<String> {
        let told = self.kept.1.lock().unwrap();
        let pairs = told.iter().zip(told.iter().skip(1));
        pairs
            .filter(|(line, _)| *line == "FDSTORE=1")
            .filter_map(|(_, name)| name.strip_prefix("FDNAME=").map(str::to_owned))
            .collect()
    }

    /// What `systemctl list-jobs` prints from now on.
    pub(crate) fn set_jobs(&self, text: &str) {
        self.set_slow_jobs(0, text);
    }

    /// The same, after so many seconds.
    pub(crate) fn set_slow_jobs(&self, seconds: u32, text: &str) {
        let program = self.house.home.path().join("bin/systemctl");
        fs::create_dir_all(program.parent().unwrap()).unwrap();
        fs::write(
            &program,
            format!("#!/bin/sh\nsleep {seconds}\necho '{text}'\n"),
        )
        .unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    }

    pub(crate) fn start(&mut self) {
        let kept = self.kept.0.lock().unwrap();
        let copy = |name: &str| kept.get(name).map(|fd| fd.try_clone().unwrap());
        let passed: Vec<(&str, OwnedFd)> = ["musherfs-device", "musherfs-state"]
            .into_iter()
            .filter_map(|name| Some((name, copy(name)?)))
            .collect();
        drop(kept);
        let names: Vec<_> = passed.iter().map(|(name, _)| *name).collect();
        let names = names.join(":");
        // Only a shell puts descriptors at given numbers without unsafe code.
        let passing = match passed.len() {
            0 => "",
            1 => "exec 3<&0; export LISTEN_PID=$$ LISTEN_FDS=1;",
            _ => "exec 3<&0 4>&1; export LISTEN_PID=$$ LISTEN_FDS=2;",
        };
        let join = match &self.group {
            Some(group) => format!("echo $$ > {}/cgroup.procs;", group.display()),
            None => String::new(),
        };
        let script = format!("{join} {passing} exec \"$@\" 0</dev/null 1>/dev/null");
        let mut command = self.house.command([""; 0]);
        let mut passed = passed.into_iter().map(|(_, fd)| Stdio::from(fd));
        let stdin = passed.next().unwrap_or_else(Stdio::null);
        let stdout = passed.next().unwrap_or_else(Stdio::null);
        let path = format!(
            "{}:/usr/bin:/bin:/usr/sbin:/sbin",
            self.house.home.path().join("bin").display()
        );
        let environment: HashMap<_, _> = command
            .get_envs()
            .filter_map(|(name, value)| Some((name.to_owned(), value?.to_owned())))
            .collect();
        let mut shell = Command::new("/bin/sh");
        shell
            .env_clear()
            .envs(environment)
            .env("PATH", path)
            .env("NOTIFY_SOCKET", &self.socket)
            .env("FDSTORE", "8")
            .env("LISTEN_FDNAMES", names)
            .args(["-c", &script, "sh", PROGRAM])
            .args(self.house.mount_arguments())
            .arg("--foreground")
            .stdin(stdin)
            .stdout(stdout)
            .stderr(Stdio::null());
        command.stdin(Stdio::null());
        self.service = Some(shell.spawn().unwrap());
    }

    pub(crate) fn end(&mut self, signal: Signal) -> ExitStatus {
        let mut service = self.service.take().unwrap();
        kill(service.id(), signal);
        let end = std::time::Instant::now() + DEADLINE;
        loop {
            if let Some(status) = service.try_wait().unwrap() {
                return status;
            }
            assert!(std::time::Instant::now() < end, "the service does not end");
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
    }
}

impl Drop for Manager<'_> {
    fn drop(&mut self) {
        if let Some(mut service) = self.service.take() {
            let _ = service.kill();
            let _ = service.wait();
        }
        self.kept.0.lock().unwrap().clear();
        if let Some(group) = &self.group {
            let _ = fs::remove_dir(group);
        }
        let _ = rustix::mount::unmount(&self.groups, UnmountFlags::DETACH);
    }
}

fn receive(listener: &UnixDatagram, kept: &Kept) -> Option<()> {
    let mut bytes = [0; 4096];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let length = recvmsg(
        listener,
        &mut [IoSliceMut::new(&mut bytes)],
        &mut control,
        RecvFlags::CMSG_CLOEXEC,
    )
    .ok()?
    .bytes;
    let text = std::str::from_utf8(&bytes[..length]).unwrap();
    let value = |key: &str| {
        text.lines()
            .find_map(|line| line.strip_prefix(key)?.strip_prefix('='))
    };
    kept.1
        .lock()
        .unwrap()
        .extend(text.lines().map(str::to_owned));
    let mut kept = kept.0.lock().unwrap();
    if value("FDSTOREREMOVE") == Some("1") {
        kept.remove(value("FDNAME").unwrap());
    }
    if value("FDSTORE") == Some("1") {
        assert_eq!(value("FDPOLL"), Some("0"));
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(fds) = message {
                for fd in fds {
                    kept.insert(value("FDNAME").unwrap().to_owned(), fd);
                }
            }
        }
    }
    Some(())
}
