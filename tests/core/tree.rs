//! The tree: numbers, listings, attributes and reads, without a kernel.

use std::sync::Arc;

use musherfs::fs::inode::{MOST_PASSING, PROBE, ROOT};
use musherfs::fs::tree::{Directory, FOREVER, Kind, epoch};
use musherfs::fs::{Answer, Found, PROBE_TEXT, What};
use musherfs::manifest::{Info, State};
use musherfs::store::Policy;
use musherfs::store::content::FAILURE_MEMORY;
use tokio::time::Instant;

use crate::fake::{Fake, Fault, unreachable};
use crate::{Machine, Process, answer, cache_version, no_readahead};

const PATHS: &[&str] = &[
    "acme",
    "acme/kit",
    "acme/kit@1.0.0",
    "acme/kit@1.0.0/README.md",
    "acme/kit@1.0.0/prompts",
    "acme/kit@1.0.0/prompts/review.md",
];

fn registry() -> Arc<Fake> {
    let fake = Fake::new("registry");
    let files = [("README.md", "# Kit\n"), ("prompts/review.md", "Review.\n")];
    fake.publish("acme/kit@1.0.0", &files);
    fake
}

async fn read(process: &Process, ino: u64) -> musherfs::error::Result<String> {
    let mut buffer = Vec::new();
    let later = answer(process.fs.read(ino, 0, 1 << 17, &mut buffer)).await?;
    Ok(String::from_utf8(later.unwrap_or(buffer)).unwrap())
}

/// The lines of a directory as name and number, read in pieces of so many.
fn lines(directory: &Directory, piece: usize) -> Vec<(String, u64)> {
    let mut lines: Vec<(String, u64)> = Vec::new();
    let mut after = 0;
    loop {
        let (mut taken, before) = (0, after);
        directory.list(before, |line| {
            if taken == piece {
                return true;
            }
            lines.push((line.name.to_owned(), line.ino));
            after = line.cookie;
            taken += 1;
            false
        });
        if taken == 0 {
            return lines;
        }
    }
}

#[tokio::test]
async fn numbers_are_the_same_on_every_machine() {
    let fake = registry();
    let one = Machine::new().process(&[&fake]);
    let other = Machine::new().process(&[&fake]);
    // In another order.
    for path in PATHS.iter().rev() {
        other.ino(path).await;
    }
    for path in PATHS {
        let (a, b) = (
            one.find(path).await.unwrap(),
            other.find(path).await.unwrap(),
        );
        assert_eq!(a, b, "{path}");
        let attr = a.unwrap();
        assert!(attr.ino < 1 << 53, "Node.js must not round it");
        assert_eq!(attr.mtime, epoch());
    }
}

#[tokio::test]
async fn a_restarted_process_knows_the_numbers_that_the_kernel_holds() {
    let (machine, fake) = (Machine::new(), registry());
    let first = machine.process(&[&fake]);
    let mut numbers = Vec::new();
    for path in PATHS {
        numbers.push(first.ino(path).await);
    }
    let review = numbers[5];
    assert_eq!(read(&first, review).await.unwrap(), "Review.\n");
    // Nothing is looked up again, and the registry is gone.
    let second = machine.process(&[]);
    assert_eq!(read(&second, review).await.unwrap(), "Review.\n");
    assert_eq!(
        answer(second.fs.readlink(numbers[1])).await.unwrap(),
        "kit@1.0.0"
    );
    for (path, ino) in PATHS.iter().zip(numbers) {
        let (attr, _) = answer(second.fs.getattr(ino)).await.unwrap();
        assert_eq!(attr.ino, ino, "{path}");
    }
    let unknown = answer(second.fs.getattr(0xdead_0000)).await.unwrap_err();
    assert!(unknown.is_absence());
}

#[tokio::test]
async fn walking_a_version_asks_for_its_manifest_and_for_no_content() {
    let (machine, fake) = (Machine::new(), registry());
    let process = machine.process(&[&fake]);
    process.ino("acme").await;
    let calls = fake.calls().len();
    let root = process.ino("acme/kit@1.0.0").await;
    let directory = answer(process.fs.directory(root)).await.unwrap();
    let names: Vec<String> = lines(&directory, 10)
        .into_iter()
        .map(|line| line.0)
        .collect();
    assert_eq!(names, [".", "..", "README.md", "prompts"]);
    let mut sizes = Vec::new();
    directory.list(2, |line| {
        let (attr, life) = line.attr.unwrap();
        assert_eq!(life, FOREVER);
        sizes.push((attr.kind, attr.size));
        false
    });
    assert_eq!(sizes, [(Kind::File, 6), (Kind::Directory, 0)]);
    let file = process.find("acme/kit@1.0.0/prompts/review.md").await;
    assert_eq!(file.unwrap().unwrap().size, 8);
    assert_eq!(fake.calls().split_off(calls), ["manifest acme/kit@1.0.0"]);
}

#[tokio::test]
async fn what_a_version_lacks_is_absent_for_ever() {
    let (machine, fake) = (Machine::new(), registry());
    let process = machine.process(&[&fake]);
    let root = process.ino("acme/kit@1.0.0").await;
    for name in ["none", ".git", "README", "prompts/review.md", ""] {
        let found = answer(process.fs.lookup(root, name)).await.unwrap();
        assert!(
            matches!(found, Found::Absent(life) if life == FOREVER),
            "{name}"
        );
    }
}

#[tokio::test]
async fn a_directory_lists_the_same_in_pieces_of_any_size() {
    let (machine, fake) = (Machine::new(), Fake::new("registry"));
    let files: Vec<String> = (0..100)
        .flat_map(|n| {
            [
                format!("{n:03}.md"),
                format!("{n:03}/a"),
                format!("{n:03}/b/c"),
            ]
        })
        .collect();
    let files: Vec<(&str, &str)> = files.iter().map(|path| (path.as_str(), "x")).collect();
    fake.publish("acme/kit@1.0.0", &files);
    for n in 0..40 {
        fake.publish(&format!("acme/kit-{n}@1.0.0"), &[]);
    }
    let process = machine.process(&[&fake]);
    for (path, count) in [
        ("acme/kit@1.0.0", 200),
        ("acme/kit@1.0.0/042", 2),
        ("acme", 82),
    ] {
        let ino = process.ino(path).await;
        let directory = answer(process.fs.directory(ino)).await.unwrap();
        let all = lines(&directory, usize::MAX);
        assert_eq!(all.len(), count + 2, "{path}");
        for piece in [1, 2, 7, 64] {
            assert_eq!(lines(&directory, piece), all, "{path} by {piece}");
        }
        for (name, number) in &all[2..] {
            assert_eq!(
                process.ino(&format!("{path}/{name}")).await,
                *number,
                "{name}"
            );
        }
    }
}

#[tokio::test]
async fn a_refused_path_is_hidden_and_its_siblings_stay() {
    let (machine, fake) = (Machine::new(), Fake::new("registry"));
    let files = [
        ("../up", "x"),
        ("/etc/passwd", "x"),
        ("a/../b", "x"),
        ("good", "x"),
        ("good/b", "x"),
        ("c", "y"),
    ];
    fake.publish("acme/kit@1.0.0", &files);
    let process = machine.process(&[&fake]);
    let root = process.ino("acme/kit@1.0.0").await;
    let directory = answer(process.fs.directory(root)).await.unwrap();
    let names: Vec<String> = lines(&directory, 3)
        .into_iter()
        .map(|line| line.0)
        .collect();
    assert_eq!(names, [".", "..", "c", "good"]);
    assert_eq!(
        process
            .find("acme/kit@1.0.0/good")
            .await
            .unwrap()
            .unwrap()
            .kind,
        Kind::Directory
    );
}

#[tokio::test]
async fn the_file_that_is_touched_after_mounting_is_there_and_unlisted() {
    let (machine, fake) = (Machine::new(), registry());
    let process = machine.process(&[&fake]);
    assert_eq!(process.ino(".musherfs").await, PROBE);
    assert_eq!(read(&process, PROBE).await.unwrap(), PROBE_TEXT);
    let root = answer(process.fs.directory(ROOT)).await.unwrap();
    assert_eq!(lines(&root, 10).len(), 2);
    assert_eq!(fake.calls(), ["namespaces"]);
}

#[tokio::test]
async fn the_kernel_drops_the_pages_of_failed_reads_once_and_after_their_readers_were_told() {
    let (machine, fake) = (Machine::new(), registry());
    let mut process = machine.process_under(&[&fake], no_readahead());
    let ino = process.ino("acme/kit@1.0.0/README.md").await;
    fake.break_calls("blob", Fault::Fail(unreachable()));
    let started = Instant::now();
    for _ in 0..3 {
        let error = read(&process, ino).await.unwrap_err();
        assert!(error.is_outage(), "{error}");
    }
    let told = process.kernel.recv().await.unwrap();
    assert_eq!((told.ino, told.what), (ino, What::Pages));
    assert!(told.done.is_none());
    assert!(started.elapsed() >= FAILURE_MEMORY);
    assert!(process.kernel.try_recv().is_err());
}

#[tokio::test]
async fn attributes_tell_what_a_file_is_and_where_it_comes_from() {
    let (machine, fake) = (Machine::new(), registry());
    let process = machine.process_under(&[&fake], no_readahead());
    let ino = process.ino("acme/kit@1.0.0/README.md").await;
    let get = |name: &str| {
        let answer = process.fs.get_xattr(ino, &format!("user.musher.{name}"));
        let Answer::Now(value) = answer else {
            panic!("{name} has to be waited for");
        };
        value.unwrap()
    };
    assert_eq!(get("cached").as_deref(), Some("no"));
    assert_eq!(get("source"), None);
    assert_eq!(get("error"), None);
    read(&process, ino).await.unwrap();
    for (name, value) in [
        ("namespace", "acme"),
        ("bundle", "kit"),
        ("version", "1.0.0"),
        ("state", "published"),
        ("size", "6"),
        ("asset_type", "prompt"),
        ("cached", "yes"),
        ("source", "registry"),
    ] {
        assert_eq!(get(name).as_deref(), Some(value), "{name}");
    }
    let digest = musherfs::digest::Digest::of(b"# Kit\n").hex();
    assert_eq!(get("sha256"), Some(digest));
    process
        .fs
        .failures()
        .record("read", ino, None, &unreachable());
    assert!(get("error").unwrap().contains("connection refused"));
    let names = answer(process.fs.list_xattr(ino)).await.unwrap();
    assert!(names.contains(&"user.musher.sha256".to_owned()));
    let foreign = answer(process.fs.get_xattr(ino, "security.selinux")).await;
    assert!(foreign.unwrap().is_none());
    let link = process.ino("acme/kit").await;
    let target = answer(process.fs.get_xattr(link, "user.musher.version")).await;
    assert_eq!(target.unwrap().as_deref(), Some("1.0.0"));
}

#[tokio::test]
async fn attributes_that_need_a_manifest_wait_for_one_that_the_cache_has_lost() {
    let (machine, fake) = (Machine::new(), registry());
    let first = machine.process(&[&fake]);
    let ino = first.ino("acme/kit@1.0.0/README.md").await;
    read(&first, ino).await.unwrap();
    std::fs::remove_dir_all(machine.cache().root().join("manifests")).unwrap();
    let names = ["state", "error"].map(|name| format!("user.musher.{name}"));

    let next = machine.process(&[&fake]);
    let state = answer(next.fs.get_xattr(ino, &names[0])).await.unwrap();
    assert_eq!(state.as_deref(), Some("published"));

    std::fs::remove_dir_all(machine.cache().root().join("manifests")).unwrap();
    let alone = machine.process(&[]);
    assert!(answer(alone.fs.get_xattr(ino, &names[0])).await.is_err());
    alone
        .fs
        .failures()
        .record("read", ino, None, &unreachable());
    assert!(
        answer(alone.fs.get_xattr(ino, &names[1]))
            .await
            .unwrap()
            .is_some()
    );
    let listed = answer(alone.fs.list_xattr(ino)).await.unwrap();
    assert!(
        listed.contains(&names[1]) && !listed.contains(&names[0]),
        "{listed:?}"
    );
}

#[tokio::test]
async fn whoever_holds_a_yanked_version_keeps_it_under_any_policy() {
    let (machine, fake) = (Machine::new(), registry());
    let first = machine.process(&[&fake]);
    let ino = first.ino("acme/kit@1.0.0/README.md").await;
    read(&first, ino).await.unwrap();
    let yanked = Info {
        state: State::Yanked,
        ..Info::default()
    };
    let files = [("README.md", "# Kit\n"), ("prompts/review.md", "Review.\n")];
    cache_version(&machine.cache(), "acme/kit@1.0.0", yanked, &files, 0);
    let policy = Policy {
        deny_yanked: true,
        ..Policy::default()
    };
    let denying = machine.process_under(&[&fake], policy);
    assert!(denying.find("acme/kit@1.0.0").await.is_err());
    assert_eq!(read(&denying, ino).await.unwrap(), "# Kit\n");
    let state = answer(denying.fs.get_xattr(ino, "user.musher.state")).await;
    assert_eq!(state.unwrap().as_deref(), Some("yanked"));
}

/// Looks a guessed namespace up as the kernel does, which may or may not keep its inode.
async fn guess(process: &Process, n: usize, keep: bool) -> u64 {
    let ino = process.ino(&format!("guess-{n}")).await;
    process.fs.entered(ino);
    if !keep {
        process.fs.forget(ino, 1);
    }
    ino
}

#[tokio::test(start_paused = true)]
async fn names_that_are_only_guessed_leave_nothing_behind() {
    let (machine, fake) = (Machine::new(), registry());
    let mut process = machine.process(&[&fake]);
    let acme = process.ino("acme").await;
    process.ino("acme/kit").await;
    let journal = machine.dir.path().join("state/journal.jsonl");
    let lines = || std::fs::read_to_string(&journal).unwrap().lines().count();
    assert_eq!(lines(), 3, "a namespace, a link and a version");
    fake.break_calls("", Fault::Fail(unreachable()));
    let held = guess(&process, 0, true).await;
    let gone = guess(&process, 1, false).await;
    for n in 2..MOST_PASSING + 100 {
        guess(&process, n, false).await;
    }
    assert_eq!(lines(), 3, "nothing real was found");
    // Whoever stands in it goes on standing in it.
    assert!(answer(process.fs.getattr(held)).await.is_ok());
    assert_eq!(process.fs.path_of(held).as_deref(), Some("/guess-0"));
    let told = process.kernel.try_recv().unwrap();
    assert_eq!((told.ino, told.what), (held, What::Inode));
    // Of the others, the oldest are forgotten, and are the same when they are found again.
    assert!(answer(process.fs.getattr(gone)).await.is_err());
    assert_eq!(guess(&process, 1, false).await, gone);
    // What something real was found behind lasts.
    assert_eq!(process.fs.path_of(acme).as_deref(), Some("/acme"));
}
