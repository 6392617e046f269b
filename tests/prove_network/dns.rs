//! A name server for one name, and a world in which it is the only one.

use std::net::{Ipv4Addr, UdpSocket};
use std::panic::resume_unwind;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::mount::{MountPropagationFlags, UnmountFlags};
use rustix::thread::UnshareFlags;

/// What it says of whichever name it is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Word {
    /// That it is this machine.
    Here,
    /// That there is no such name.
    Unknown,
    /// Nothing.
    Silence,
}

/// The server; stops when dropped. It listens at port 53, the only one that a resolver asks.
pub(crate) struct NameServer {
    address: Ipv4Addr,
    asked: Arc<AtomicUsize>,
    stopping: Arc<AtomicBool>,
    answering: Option<JoinHandle<()>>,
}

impl NameServer {
    pub(crate) fn start(word: impl Fn() -> Word + Send + 'static) -> Self {
        let (address, socket) = (1..255)
            .map(|last| Ipv4Addr::new(127, 0, 53, last))
            .find_map(|address| Some((address, UdpSocket::bind((address, 53)).ok()?)))
            .expect("an address on loopback that nobody answers names at");
        let glance = Some(Duration::from_millis(100));
        socket.set_read_timeout(glance).unwrap();
        let (asked, stopping) = (Arc::<AtomicUsize>::default(), Arc::<AtomicBool>::default());
        let answering = std::thread::spawn({
            let (asked, stopping) = (Arc::clone(&asked), Arc::clone(&stopping));
            move || {
                let mut question = [0; 512];
                while !stopping.load(Ordering::SeqCst) {
                    let Ok((length, from)) = socket.recv_from(&mut question) else {
                        continue;
                    };
                    asked.fetch_add(1, Ordering::SeqCst);
                    if let Some(answer) = answer(&question[..length], word()) {
                        // Whoever has asked may be gone.
                        let _ = socket.send_to(&answer, from);
                    }
                }
            }
        });
        Self {
            address,
            asked,
            stopping,
            answering: Some(answering),
        }
    }

    /// How often it was asked.
    pub(crate) fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }

    /// Does `work`, which asks nobody else for addresses, nor do the programs that it starts: in a
    /// mount namespace with an `/etc/resolv.conf` of its own.
    pub(crate) fn rule<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let in_a_thread = || {
            // Deprecated for what can happen to descriptors, which stay shared.
            #[allow(deprecated)]
            rustix::thread::unshare(UnshareFlags::NEWNS).unwrap();
            let of_its_own = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
            rustix::mount::mount_change("/", of_its_own).unwrap();
            leave_mounts_to_others();
            let settings = tempfile::NamedTempFile::new().unwrap();
            std::fs::write(settings.path(), format!("nameserver {}\n", self.address)).unwrap();
            rustix::mount::mount_bind(settings.path(), "/etc/resolv.conf").unwrap();
            work()
        };
        let done = std::thread::scope(|scope| scope.spawn(in_a_thread).join());
        done.unwrap_or_else(|panic| resume_unwind(panic))
    }
}

impl Drop for NameServer {
    fn drop(&mut self) {
        self.stopping.store(true, Ordering::SeqCst);
        if let Some(answering) = self.answering.take() {
            let _ = answering.join();
        }
    }
}

/// The copies of other tests' mounts in this namespace would keep their daemons alive.
fn leave_mounts_to_others() {
    let table = std::fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
    for line in table
        .lines()
        .filter(|line| line.contains(" - fuse.musherfs "))
    {
        let mountpoint = line.split(' ').nth(4).unwrap();
        // Its owner may have been quicker.
        let _ = rustix::mount::unmount(mountpoint, UnmountFlags::DETACH);
    }
}

/// The answer to a question (RFC 1035, section 4.1), of which there is one in a message.
fn answer(question: &[u8], word: Word) -> Option<Vec<u8>> {
    const HEAD: usize = 12;
    const NO_SUCH_NAME: u8 = 3;
    const A: u8 = 1;
    let name = question.get(HEAD..)?.iter().position(|byte| *byte == 0)?;
    // After the name's end: type and class, of two bytes each.
    let asked = question.get(HEAD..HEAD + name + 5)?;
    let has_address = word == Word::Here && asked[name + 2] == A;
    let code = match word {
        Word::Here => 0,
        Word::Unknown => NO_SUCH_NAME,
        Word::Silence => return None,
    };
    let mut answer = question[..2].to_vec();
    // A recursive answer to one question, with so many records.
    answer.extend([0x81, 0x80 | code, 0, 1, 0, u8::from(has_address)]);
    answer.extend([0; 4]);
    answer.extend(asked);
    if has_address {
        // The name that was asked for, an address of the Internet, for no time, four bytes.
        answer.extend([0xc0, 12, 0, A, 0, 1, 0, 0, 0, 0, 0, 4, 127, 0, 0, 1]);
    }
    Some(answer)
}
