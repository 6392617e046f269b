//! Every fault × every operation × both kinds of registry: each call ends in time, with the number
//! that the table in the README has for it, and what is cached is served all the while.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::json;

use crate::proxy::{FAULTS, Fault, Proxy};
use crate::support::fuse::require_fuse;
use crate::support::mount::{TestMount, eventually, forget_pages, name_of, read};
use crate::support::prove::Proof;
use crate::support::registry::TestRegistry;

/// What a request may take.
const DEADLINE: Duration = Duration::from_secs(2);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Api,
    Oci,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Operation {
    Resolve,
    Versions,
    Manifest,
    Namespace,
    Read,
}

const OPERATIONS: [Operation; 5] = [
    Operation::Resolve,
    Operation::Versions,
    Operation::Manifest,
    Operation::Namespace,
    Operation::Read,
];

impl Operation {
    /// In a namespace that nobody has looked at.
    fn namespace(self) -> String {
        format!("{self:?}").to_lowercase()
    }

    fn run(self, mount: &TestMount) -> Result<(), i32> {
        let namespace = self.namespace();
        let path = mount.path(&namespace);
        match self {
            Self::Resolve => mount.stat(&format!("{namespace}/kit@stable")).map(drop),
            Self::Versions => mount.stat(&format!("{namespace}/kit@^1")).map(drop),
            Self::Manifest => mount.stat(&format!("{namespace}/kit@1.0.0")).map(drop),
            Self::Namespace => crate::support::mount::within("listing", move || {
                let entries = std::fs::read_dir(path).map_err(|e| e.raw_os_error().unwrap())?;
                for entry in entries {
                    entry.map_err(|e| e.raw_os_error().unwrap())?;
                }
                Ok(())
            }),
            Self::Read => read(&path.join("kit@1.0.0/a.md")).map(drop),
        }
    }
}

/// What the README's table says. A call whose last retry the deadline cuts off has run out of time.
fn documented(fault: Fault) -> &'static [i32] {
    match fault {
        Fault::Unavailable | Fault::Truncate | Fault::Reset | Fault::DnsDead => {
            &[libc::EHOSTUNREACH, libc::ETIMEDOUT]
        }
        Fault::Forbidden => &[libc::EACCES],
        Fault::Delay | Fault::Stall | Fault::Trickle | Fault::TlsStall => &[libc::ETIMEDOUT],
        Fault::WrongBytes | Fault::WrongLength | Fault::RedirectLoop => &[libc::EIO],
        // Unpacking what is too much takes its time, too.
        Fault::GzipBomb => &[libc::EIO, libc::ETIMEDOUT],
    }
}

/// What one operation came to.
struct Row {
    kind: Kind,
    fault: Fault,
    operation: Operation,
    seen: Result<(), i32>,
    took: Duration,
}

fn case(kind: Kind, fault: Fault) -> Vec<Row> {
    let registry = Arc::new(TestRegistry::start());
    let content: &[u8] = b"content that is read at last\n";
    let again = |operation: Operation| format!("again{}", operation.namespace());
    for operation in OPERATIONS {
        for namespace in [operation.namespace(), again(operation)] {
            let version = registry.publish(&namespace, "kit", "1.0.0", &[("a.md", content)]);
            registry.tag(&version, "stable");
        }
    }
    registry.publish("warm", "kit", "1.0.0", &[("a.md", b"warm\n")]);
    let proxy = match fault {
        Fault::TlsStall => Proxy::with_tls(&registry),
        _ => Proxy::of(&registry),
    };
    let url = match fault {
        Fault::DnsDead => "https://registry.invalid".to_owned(),
        _ => proxy.url(),
    };
    let authority = tempfile::NamedTempFile::new().unwrap();
    let mut mounting = match kind {
        Kind::Api => TestMount::of_url(&url),
        Kind::Oci => TestMount::of_oci(&url),
    };
    mounting = mounting.args(&[
        "--readahead=0",
        &format!("--metadata-timeout={}s", DEADLINE.as_secs()),
        &format!("--content-timeout={}s", DEADLINE.as_secs()),
    ]);
    if let Some(pem) = &proxy.authority {
        std::fs::write(authority.path(), pem).unwrap();
        mounting = mounting.args(&["--ca-file", authority.path().to_str().unwrap()]);
    }
    let mount = mounting.start();
    let warm = mount.path("warm/kit@1.0.0/a.md");
    let can_be_up = fault != Fault::DnsDead;
    if can_be_up {
        eventually("the registry", || read(&warm).ok());
    }

    let mut rows = Vec::new();
    for operation in OPERATIONS {
        if can_be_up {
            // Also closes the breaker, which would answer for the network otherwise.
            proxy.set(None);
            let name = format!("{}/kit@1.0.0", again(operation));
            eventually("the network", || mount.stat(&name).ok());
            let _ = mount.stat(&operation.namespace());
            if operation == Operation::Read {
                let name = format!("{}/kit@1.0.0/a.md", operation.namespace());
                eventually("the manifest", || mount.stat(&name).ok());
            }
        } else if operation == Operation::Read {
            // What is there to be read nobody can know.
            continue;
        }
        proxy.set(Some(fault));
        let start = Instant::now();
        let seen = operation.run(&mount);
        rows.push(Row {
            kind,
            fault,
            operation,
            seen,
            took: start.elapsed(),
        });
        if can_be_up {
            forget_pages(&warm);
            assert_eq!(read(&warm), Ok(b"warm\n".to_vec()), "{kind:?} {fault:?}");
        }
    }
    proxy.set(None);
    if can_be_up {
        let path = mount.path("read/kit@1.0.0/a.md");
        let seen = eventually("the end of the fault", || read(&path).ok());
        assert_eq!(seen, content, "{kind:?} {fault:?}");
    }
    assert!(mount.is_alive(), "{kind:?} {fault:?}");
    mount.unmount();
    rows
}

#[test]
fn every_call_ends_in_time_with_the_documented_error() {
    if !require_fuse() {
        return;
    }
    let proof = Proof::start(
        "every uncached call ends within its deadline and 1 s, with the documented error",
        "a faulty proxy × every operation, API and OCI, through a real mount",
    );
    let mut random = proof.random();
    let mut cases: Vec<_> = [Kind::Api, Kind::Oci]
        .into_iter()
        .flat_map(|kind| FAULTS.map(|fault| (kind, fault)))
        .collect();
    if !proof.is_long() {
        while cases.len() > 4 {
            cases.swap_remove(random.index(cases.len()));
        }
    }
    let count = cases.len();
    // Timed: not more at once than the machine can do besides other tests.
    let queue = Mutex::new(VecDeque::from(cases));
    let rows = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                loop {
                    let Some((kind, fault)) = queue.lock().unwrap().pop_front() else {
                        return;
                    };
                    let seen = case(kind, fault);
                    rows.lock().unwrap().extend(seen);
                }
            });
        }
    });

    let allowance = proof.pick(Duration::from_secs(20), Duration::from_secs(1));
    let mut wrong = Vec::new();
    let mut latest = Duration::ZERO;
    let rows = rows.into_inner().unwrap();
    for row in &rows {
        let line = format!(
            "{:?} {:?} {:?}: {} after {:.2} s",
            row.kind,
            row.fault,
            row.operation,
            row.seen.map_or_else(name_of, |()| "no error".to_owned()),
            row.took.as_secs_f64()
        );
        let is_documented = match row.seen {
            Err(errno) => documented(row.fault).contains(&errno),
            // What is known is listed, whatever happens: nothing, here.
            Ok(()) => row.operation == Operation::Namespace,
        };
        if !is_documented || row.took > DEADLINE + allowance {
            wrong.push(line.clone());
        }
        eprintln!("{line}");
        latest = latest.max(row.took);
    }
    assert!(wrong.is_empty(), "not as documented: {wrong:#?}");
    proof.held(json!({
        "faults × registries": count,
        "calls": rows.len(),
        "s at most": latest.as_secs_f64(),
        "s deadline": DEADLINE.as_secs(),
    }));
}
