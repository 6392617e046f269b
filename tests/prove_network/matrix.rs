//! Every fault × every operation × both kinds of registry: each call ends in time, with what the
//! tables in the README have for it, and what is cached is served all the while.

use std::collections::{BTreeMap, VecDeque};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::json;

use crate::proxy::{FAULTS, Fault, Proxy};
use crate::support::fuse::{require_fuse, require_root};
use crate::support::mount::{
    Home, TestMount, eventually, forget_pages, name_of, number, read, within,
};
use crate::support::prove::Proof;
use crate::support::registry::TestRegistry;

/// What a request may take. It has room for the pauses between all attempts (at most 1.75 s), so that
/// who is refused is refused, and not merely late.
const DEADLINE: Duration = Duration::from_secs(3);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Api,
    Oci,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Operation {
    /// Lists the root.
    Root,
    /// Lists a namespace that nobody has looked at. Not of an OCI registry, whose list is one of
    /// everything: the root asks for it.
    Unseen,
    /// Lists a namespace of which something is cached; the same.
    Namespace,
    Resolve,
    Versions,
    Manifest,
    Read,
    /// Reads a second file of a version, with which read-ahead starts.
    ReadOn,
    /// The commands, each a process that knows nothing of the network.
    CommandResolve,
    CommandLs,
    /// Loads the content of a version whose list of files is cached.
    CommandLoad,
    /// Publishes what is there already, which is the first thing that it asks for.
    CommandPublish,
}

/// The first two before anything has been listed.
const OPERATIONS: [Operation; 12] = [
    Operation::Root,
    Operation::Unseen,
    Operation::Namespace,
    Operation::Resolve,
    Operation::Versions,
    Operation::Manifest,
    Operation::Read,
    Operation::CommandResolve,
    Operation::CommandLs,
    Operation::CommandLoad,
    Operation::CommandPublish,
    Operation::ReadOn,
];

/// What an operation works with: a namespace of its own, and who asks.
struct Stage<'a> {
    kind: Kind,
    url: &'a str,
    namespace: String,
    mount: &'a TestMount,
    home: Arc<Home>,
    authority: Option<&'a Path>,
    /// A directory that is published.
    bundle: &'a Path,
}

impl Stage<'_> {
    fn name(&self, below: &str) -> String {
        format!("{}/{below}", self.namespace)
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = self.home.command(arguments);
        let option = match self.kind {
            Kind::Api => "--api-url",
            Kind::Oci => "--oci",
        };
        command.args([option, self.url]);
        if let Some(authority) = self.authority {
            command.arg("--ca-file").arg(authority);
        }
        let seconds = format!("{}s", DEADLINE.as_secs());
        for timeout in ["MUSHERFS_METADATA_TIMEOUT", "MUSHERFS_CONTENT_TIMEOUT"] {
            command.env(timeout, &seconds);
        }
        command
    }

    /// Runs it; how it ended.
    fn exit(&self, arguments: &[&str]) -> String {
        let mut command = self.command(arguments);
        command.stdout(Stdio::null()).stderr(Stdio::null());
        let status = within("a command", move || command.status().unwrap());
        format!("exit {}", status.code().unwrap())
    }

    /// Lists a directory; what of it is `about`.
    fn list(&self, path: &str, about: impl Fn(&str) -> bool) -> String {
        let path = self.mount.path(path);
        let listed = within("listing", move || {
            let entries = std::fs::read_dir(path)?;
            entries
                .map(|entry| Ok(entry?.file_name().into_string().unwrap()))
                .collect::<std::io::Result<Vec<String>>>()
        });
        match listed {
            Ok(mut names) => {
                names.retain(|name| about(name));
                names.sort();
                format!("lists {}", names.join(" "))
            }
            Err(error) => name_of(number(&error)),
        }
    }
}

fn named<T>(answer: Result<T, i32>) -> String {
    answer.map_or_else(name_of, |_| "no error".to_owned())
}

impl Operation {
    /// In a namespace of its own, unlike that of every other operation.
    fn namespace(self) -> String {
        format!("of-{self:?}").to_lowercase()
    }

    fn is_for(self, kind: Kind) -> bool {
        match self {
            Self::Unseen | Self::Namespace => kind == Kind::Api,
            Self::CommandPublish => kind == Kind::Oci,
            _ => true,
        }
    }

    /// What is known before the network fails: what is on the way to the question, not the answer.
    fn prepare(self, stage: &Stage<'_>) {
        let known = |name: &str| {
            eventually("what comes before", || {
                stage.mount.stat(&stage.name(name)).ok()
            });
        };
        match self {
            Self::Resolve | Self::Versions | Self::Manifest => known(""),
            Self::Namespace => known("kit@1.0.0"),
            Self::Read => known("kit@1.0.0/a.md"),
            Self::ReadOn => {
                let first = stage.mount.path(&stage.name("kit@1.0.0/a.md"));
                eventually("the first file", || read(&first).ok());
            }
            Self::CommandLoad => {
                assert_eq!(stage.exit(&["ls", &stage.name("kit@1.0.0")]), "exit 0");
            }
            Self::Root | Self::Unseen => {}
            Self::CommandResolve | Self::CommandLs | Self::CommandPublish => {}
        }
    }

    fn run(self, stage: &Stage<'_>) -> String {
        let mount = stage.mount;
        match self {
            Self::Root => stage.list("", |name| name == "warm"),
            Self::Unseen | Self::Namespace => stage.list(&stage.namespace, |_| true),
            Self::Resolve => named(mount.stat(&stage.name("kit@stable"))),
            Self::Versions => named(mount.stat(&stage.name("kit@^1"))),
            Self::Manifest => named(mount.stat(&stage.name("kit@1.0.0"))),
            Self::Read => named(mount.read(&stage.name("kit@1.0.0/a.md"))),
            Self::ReadOn => named(mount.read(&stage.name("kit@1.0.0/b.md"))),
            Self::CommandResolve => stage.exit(&["resolve", &stage.name("kit@stable")]),
            Self::CommandLs => stage.exit(&["ls", &stage.name("kit@1.0.0")]),
            Self::CommandLoad => stage.exit(&["load", &stage.name("kit@1.0.0")]),
            Self::CommandPublish => stage.exit(&["publish", stage.bundle.to_str().unwrap()]),
        }
    }

    /// What the README says of it. A listing never fails: it says what is known.
    fn documented(self, kind: Kind, fault: Fault) -> &'static str {
        let mut cause = cause(fault);
        // All that is missing is asked for at once, for a third of the time; whoever comes next is
        // told at once that nobody answers.
        let is_pulled = kind == Kind::Api && matches!(self, Self::ReadOn | Self::CommandLoad);
        if is_pulled && cause == Cause::Late {
            cause = Cause::Unreachable;
        }
        match self {
            Self::Root => "lists warm",
            Self::Unseen => "lists ",
            Self::Namespace => "lists kit kit@1.0.0",
            Self::Resolve | Self::Versions | Self::Manifest | Self::Read | Self::ReadOn => {
                cause.errno()
            }
            // Other bytes are understood: a file is not what it should be, and what is published already
            // is something else. Of the API a file that is cut short is no JSON any more.
            Self::CommandLoad | Self::CommandPublish if fault == Fault::WrongBytes => "exit 1",
            Self::CommandLoad | Self::CommandPublish
                if (kind, fault) == (Kind::Oci, Fault::WrongLength) =>
            {
                "exit 1"
            }
            Self::CommandResolve | Self::CommandLs | Self::CommandPublish | Self::CommandLoad => {
                cause.exit()
            }
        }
    }

    /// Whether time may run out, too: the API has three ways to a file, each tried with all attempts,
    /// and the last may begin when time is up.
    fn may_be_late(self, kind: Kind, fault: Fault) -> bool {
        (kind, self, fault) == (Kind::Api, Self::Read, Fault::Unavailable)
    }
}

/// A row of the README's tables of errors.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Cause {
    Refused,
    Wrong,
    Late,
    Unreachable,
}

fn cause(fault: Fault) -> Cause {
    match fault {
        Fault::Unavailable | Fault::Truncate | Fault::Reset | Fault::DnsDead => Cause::Unreachable,
        Fault::Forbidden => Cause::Refused,
        Fault::Delay | Fault::Stall | Fault::Trickle | Fault::TlsStall | Fault::DnsStall => {
            Cause::Late
        }
        Fault::WrongBytes | Fault::WrongLength | Fault::RedirectLoop | Fault::GzipBomb => {
            Cause::Wrong
        }
    }
}

impl Cause {
    fn errno(self) -> &'static str {
        match self {
            Self::Refused => "EACCES",
            Self::Wrong => "EIO",
            Self::Late => "ETIMEDOUT",
            Self::Unreachable => "EHOSTUNREACH",
        }
    }

    fn exit(self) -> &'static str {
        match self {
            Self::Refused => "exit 2",
            Self::Wrong | Self::Unreachable => "exit 3",
            Self::Late => "exit 5",
        }
    }
}

/// What one operation came to.
struct Row {
    kind: Kind,
    fault: Fault,
    operation: Operation,
    seen: String,
    took: Duration,
    /// How often it came to where the fault strikes.
    met: usize,
}

fn case(kind: Kind, fault: Fault) -> Vec<Row> {
    let registry = Arc::new(TestRegistry::start());
    let proxy = Proxy::for_fault(&registry, fault);
    match &proxy.names {
        Some(names) => names.rule(|| met_by(kind, fault, &registry, &proxy)),
        None => met_by(kind, fault, &registry, &proxy),
    }
}

fn met_by(kind: Kind, fault: Fault, registry: &TestRegistry, proxy: &Proxy) -> Vec<Row> {
    let content: &[u8] = b"content that is read at last\n";
    let again = |operation: Operation| format!("again-{}", operation.namespace());
    for operation in OPERATIONS {
        for namespace in [operation.namespace(), again(operation)] {
            let files: [(&str, &[u8]); 4] = [
                ("a.md", content),
                ("b.md", b"the second\n"),
                ("c.md", b"the third\n"),
                ("d.md", b"the fourth\n"),
            ];
            // Content of its own, or it would be cached.
            let files = files.map(|(name, bytes)| (name, [bytes, namespace.as_bytes()].concat()));
            let files: Vec<(&str, &[u8])> = files
                .iter()
                .map(|(name, bytes)| (*name, bytes.as_slice()))
                .collect();
            let version = registry.publish(&namespace, "kit", "1.0.0", &files);
            registry.tag(&version, "stable");
        }
    }
    registry.publish("warm", "kit", "1.0.0", &[("a.md", b"warm\n")]);
    let bundle = tempfile::tempdir().unwrap();
    std::fs::write(
        bundle.path().join("musher.yaml"),
        "namespace: of-commandpublish\nslug: kit\nversion: 1.0.0\nname: Kit\nassets:\n  - id: a\n    src: a.md\n    kind: prompt\n",
    )
    .unwrap();
    std::fs::write(bundle.path().join("a.md"), "to be published\n").unwrap();
    let authority = proxy.authority.as_ref().map(|pem| {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), pem).unwrap();
        file
    });
    let url = proxy.url();
    let mut mounting = match kind {
        Kind::Api => TestMount::of_url(&url),
        Kind::Oci => TestMount::of_oci(&url),
    };
    mounting = mounting.args(&[
        &format!("--metadata-timeout={}s", DEADLINE.as_secs()),
        &format!("--content-timeout={}s", DEADLINE.as_secs()),
    ]);
    if let Some(authority) = &authority {
        mounting = mounting.args(&["--ca-file", authority.path().to_str().unwrap()]);
    }
    let mount = mounting.start();
    let warm = mount.path("warm/kit@1.0.0/a.md");
    eventually("the registry", || read(&warm).ok());

    let mut rows = Vec::new();
    for operation in OPERATIONS.into_iter().filter(|it| it.is_for(kind)) {
        let stage = Stage {
            kind,
            url: &url,
            namespace: operation.namespace(),
            mount: &mount,
            home: Home::new(),
            authority: authority.as_ref().map(tempfile::NamedTempFile::path),
            bundle: bundle.path(),
        };
        // Also closes the breaker, which would answer for the network otherwise.
        let known = format!("{}/kit@1.0.0", again(operation));
        eventually("the network", || mount.stat(&known).ok());
        operation.prepare(&stage);
        // A list of what there is may be about everything.
        let about = match operation {
            Operation::Root | Operation::Unseen => "",
            _ => &stage.namespace,
        };
        let before = proxy.met(about);
        proxy.set(Some(fault));
        let start = Instant::now();
        let seen = operation.run(&stage);
        rows.push(Row {
            kind,
            fault,
            operation,
            seen,
            took: start.elapsed(),
            met: proxy.met(about) - before,
        });
        forget_pages(&warm);
        assert_eq!(read(&warm), Ok(b"warm\n".to_vec()), "{kind:?} {fault:?}");
        proxy.set(None);
    }
    let path = mount.path(&format!("{}/kit@1.0.0/a.md", Operation::Read.namespace()));
    let seen = eventually("the end of the fault", || read(&path).ok());
    assert!(seen.starts_with(content), "{kind:?} {fault:?}");
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
        "a faulty proxy or name server × every operation, API and OCI, through a real mount and by \
         command; each call seen to meet its fault",
    );
    let mut random = proof.random();
    // A resolver of one's own takes a mount namespace.
    let has_names = require_root();
    let mut cases: Vec<_> = [Kind::Api, Kind::Oci]
        .into_iter()
        .flat_map(|kind| FAULTS.map(|fault| (kind, fault)))
        .filter(|(_, fault)| has_names || !fault.is_of_names())
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
    let mut answers: BTreeMap<&str, usize> = BTreeMap::new();
    let rows = rows.into_inner().unwrap();
    for row in &rows {
        let line = format!(
            "{:?} {:?} {:?}: {} after {:.2} s, met {} times",
            row.kind,
            row.fault,
            row.operation,
            row.seen,
            row.took.as_secs_f64(),
            row.met
        );
        let documented = row.operation.documented(row.kind, row.fault);
        let is_late =
            row.operation.may_be_late(row.kind, row.fault) && row.seen == Cause::Late.errno();
        if !(row.seen == documented || is_late) || row.met == 0 || row.took > DEADLINE + allowance {
            wrong.push(format!("{line}; documented: {documented}"));
        }
        eprintln!("{line}");
        latest = latest.max(row.took);
        *answers.entry(&row.seen).or_default() += 1;
    }
    assert!(wrong.is_empty(), "not as documented: {wrong:#?}");
    let mut numbers = json!({
        "faults × registries": count,
        "calls": rows.len(),
        "s at most": latest.as_secs_f64(),
        "s deadline": DEADLINE.as_secs(),
    });
    for (answer, count) in answers {
        numbers[format!("× {}", answer.trim())] = count.into();
    }
    proof.held(numbers);
}
