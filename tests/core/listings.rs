//! What is in a namespace and which namespaces there are, with and without a registry.

use std::sync::Arc;
use std::time::Duration;

use musherfs::error::Error;
use musherfs::fs::Found;
use musherfs::fs::inode::ROOT;
use musherfs::manifest::{Info, State};
use musherfs::resolve::{ABSENCE_TTL, LISTING_TTL, Presence};
use musherfs::store::Policy;
use tokio::time::{Instant, advance};

use crate::fake::{Fake, Fault, unreachable};
use crate::{Machine, Options, Process, answer, cache_version, namespace, soon};

fn registry() -> Arc<Fake> {
    let fake = Fake::new("registry");
    for id in ["acme/kit@1.0.0", "acme/kit@2.0.0", "acme/other@0.1.0"] {
        fake.publish(id, &[]);
    }
    fake
}

async fn root(process: &Process) -> Vec<String> {
    let root = process.resolver.root(soon()).await;
    root.iter().map(ToString::to_string).collect()
}

async fn presence(process: &Process, name: &str) -> Presence {
    process.resolver.namespace(&namespace(name), soon()).await
}

#[tokio::test(start_paused = true)]
async fn a_namespace_lists_its_bundles_and_their_published_versions() {
    let (machine, fake) = (Machine::new(), registry());
    fake.set_state("acme/kit@2.0.0", State::Yanked);
    let process = machine.process(&[&fake]);
    let expected = ["kit", "kit@1.0.0", "other", "other@0.1.0"];
    assert_eq!(process.list("acme").await.unwrap(), expected);
    let calls = fake.calls();
    assert_eq!(process.list("acme").await.unwrap(), expected);
    assert_eq!(fake.calls(), calls, "a listing is fresh for a minute");
    fake.publish("acme/kit@1.1.0", &[]);
    advance(LISTING_TTL).await;
    let listed = process.list("acme").await.unwrap();
    assert_eq!(listed[..3], ["kit", "kit@1.0.0", "kit@1.1.0"]);
}

#[tokio::test]
async fn a_cached_version_that_is_yanked_meanwhile_is_not_listed() {
    let (machine, fake) = (Machine::new(), registry());
    cache_version(&machine.cache(), "acme/kit@2.0.0", Info::default(), &[], 0);
    fake.set_state("acme/kit@2.0.0", State::Yanked);
    let process = machine.process(&[&fake]);
    let listed = process.list("acme").await.unwrap();
    assert_eq!(listed, ["kit", "kit@1.0.0", "other", "other@0.1.0"]);
}

#[tokio::test]
async fn a_complete_listing_answers_for_what_is_not_in_it() {
    let (machine, fake) = (Machine::new(), registry());
    let process = machine.process(&[&fake]);
    process.list("acme").await.unwrap();
    let error = process.target("acme/none").await.unwrap_err();
    assert!(matches!(error, Error::NotFound { .. }), "{error}");
    assert_eq!(fake.count("resolve"), 0);
    // An incomplete one does not.
    let machine = Machine::new();
    fake.break_calls("bundles", Fault::Fail(unreachable()));
    let process = machine.process(&[&fake]);
    process.list("acme").await.unwrap();
    assert_eq!(process.target("acme/kit").await.unwrap(), "2.0.0");
}

#[tokio::test]
async fn the_versions_of_at_most_256_bundles_are_listed() {
    let (machine, fake) = (Machine::new(), Fake::new("registry"));
    for n in 0..300 {
        fake.publish(&format!("acme/kit-{n:03}@1.0.0"), &[]);
    }
    let id = "acme/kit-290@1.0.0";
    cache_version(&machine.cache(), id, Info::default(), &[], 0);
    let process = machine.process(&[&fake]);
    let listed = process.list("acme").await.unwrap();
    assert_eq!(fake.count("versions"), 256);
    assert_eq!(listed.len(), 300 + 256 + 1);
    assert!(listed.contains(&"kit-290@1.0.0".to_owned()));
    assert!(listed.contains(&"kit-299".to_owned()));
    assert!(!listed.contains(&"kit-299@1.0.0".to_owned()));
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_listed_stays_as_it_was() {
    let (machine, fake) = (Machine::new(), registry());
    let process = machine.process(&[&fake]);
    let all = process.list("acme").await.unwrap();
    fake.break_calls("versions acme/kit", Fault::Fail(unreachable()));
    advance(LISTING_TTL).await;
    assert_eq!(process.list("acme").await.unwrap(), all);
    for fault in [
        Fault::Fail(unreachable()),
        Fault::Fail(Error::not_found("acme")),
        Fault::Hang,
    ] {
        fake.break_calls("", fault);
        advance(LISTING_TTL).await;
        assert_eq!(process.list("acme").await.unwrap(), all);
    }
    // A process that has seen nothing lists what is cached.
    cache_version(&machine.cache(), "acme/kit@1.0.0", Info::default(), &[], 0);
    fake.break_calls("versions acme/kit", Fault::Fail(unreachable()));
    let other = machine.process(&[&fake]);
    let listed = other.list("acme").await.unwrap();
    assert_eq!(listed, ["kit", "kit@1.0.0", "other", "other@0.1.0"]);
}

#[tokio::test(start_paused = true)]
async fn a_listing_ends_within_its_deadline_with_what_has_arrived() {
    let (machine, fake) = (Machine::new(), registry());
    fake.break_calls("versions acme/kit", Fault::Hang);
    let process = machine.process(&[&fake]);
    let start = Instant::now();
    let listed = process.list("acme").await.unwrap();
    assert_eq!(listed, ["kit", "other", "other@0.1.0"]);
    assert!(start.elapsed() <= Duration::from_secs(10));
}

#[tokio::test(start_paused = true)]
async fn a_namespace_that_the_registry_does_not_know_is_absent_for_five_seconds() {
    let (machine, fake) = (Machine::new(), registry());
    let process = machine.process(&[&fake]);
    for _ in 0..2 {
        assert_eq!(presence(&process, "nobody").await, Presence::Absent);
    }
    assert_eq!(fake.calls(), ["bundles nobody"]);
    assert!(process.list("nobody").await.unwrap_err().is_absence());
    fake.publish("nobody/kit@1.0.0", &[]);
    advance(ABSENCE_TTL).await;
    assert_eq!(presence(&process, "nobody").await, Presence::Known);
}

#[tokio::test(start_paused = true)]
async fn a_namespace_is_assumed_while_nobody_can_be_asked() {
    let (machine, fake) = (Machine::new(), registry());
    let process = machine.process(&[&fake]);
    fake.break_calls("", Fault::Fail(unreachable()));
    assert_eq!(presence(&process, "nobody").await, Presence::Assumed);
    let found = answer(process.fs.lookup(ROOT, "nobody")).await.unwrap();
    assert!(matches!(found, Found::Node(_, life, _) if life == ABSENCE_TTL));
    assert!(process.list("nobody").await.unwrap().is_empty());
    assert!(root(&process).await.is_empty());
    fake.heal();
    advance(LISTING_TTL).await;
    assert_eq!(presence(&process, "nobody").await, Presence::Absent);
    assert_eq!(presence(&process, "acme").await, Presence::Known);
    assert_eq!(root(&process).await, ["acme"]);
}

#[tokio::test]
async fn looking_a_namespace_up_and_listing_it_asks_for_its_bundles_once() {
    let (machine, fake) = (Machine::new(), registry());
    let process = machine.process(&[&fake]);
    let ino = process.ino("acme").await;
    answer(process.fs.directory(ino)).await.unwrap();
    assert_eq!(fake.count("bundles"), 1);
    assert_eq!(fake.count("versions"), 2);
}

#[tokio::test]
async fn names_that_no_registry_has_cost_no_request() {
    let (machine, fake) = (Machine::new(), registry());
    let process = machine.process(&[&fake]);
    for name in [
        ".git",
        ".hidden",
        ".Trash-1000",
        "..",
        "a b",
        "é",
        "AGENTS.md",
        "package.json",
        "HEAD",
        "Makefile",
        "a@b",
    ] {
        assert!(process.find(name).await.unwrap().is_none(), "{name}");
    }
    assert!(fake.calls().is_empty());
    process.ino("acme").await;
    let calls = fake.calls();
    for name in [
        ".git",
        "AGENTS.md",
        "CLAUDE.md",
        "kit@",
        "kit@..",
        "@latest",
        "x y",
        "kit@.a",
    ] {
        let path = format!("acme/{name}");
        assert!(process.find(&path).await.unwrap().is_none(), "{path}");
    }
    assert_eq!(fake.calls(), calls);
}

#[tokio::test(start_paused = true)]
async fn the_root_lists_what_is_configured_cached_told_and_seen() {
    let (machine, fake) = (Machine::new(), registry());
    cache_version(
        &machine.cache(),
        "cached/kit@1.0.0",
        Info::default(),
        &[],
        0,
    );
    fake.tell_namespaces(&["mine"]);
    let options = Options {
        namespaces: vec![namespace("configured")],
        ..Options::default()
    };
    let process = machine.process_with(&[&fake], options);
    assert_eq!(root(&process).await, ["cached", "configured", "mine"]);
    assert_eq!(
        fake.calls(),
        ["namespaces"],
        "and nobody is asked what is in them"
    );
    presence(&process, "acme").await;
    // What was told stays when it cannot be told again.
    fake.break_calls("", Fault::Fail(unreachable()));
    advance(LISTING_TTL).await;
    assert_eq!(
        root(&process).await,
        ["acme", "cached", "configured", "mine"]
    );
}

#[tokio::test]
async fn a_configured_namespace_is_there_whatever_the_registry_says() {
    let (machine, fake) = (Machine::new(), Fake::new("registry"));
    let options = Options {
        namespaces: vec![namespace("mine")],
        policy: Policy::default(),
        ..Options::default()
    };
    let process = machine.process_with(&[&fake], options);
    assert_eq!(presence(&process, "mine").await, Presence::Known);
    assert!(process.list("mine").await.unwrap().is_empty());
}

/// Lists a directory as a kernel does: in pages of a hundred lines, with a stat now and then.
async fn list_in_pages(process: &Process, ino: u64) -> Vec<String> {
    let (mut names, mut after) = (Vec::new(), 0);
    loop {
        answer(process.fs.getattr(ino)).await.unwrap();
        let directory = answer(process.fs.directory(ino)).await.unwrap();
        let mut page = 0;
        directory.list(after, |line| {
            if page == 100 {
                return true;
            }
            names.push(line.name.to_owned());
            (page, after) = (page + 1, line.cookie);
            false
        });
        if page == 0 {
            return names;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn listing_thousands_of_bundles_looks_through_the_cache_once_not_once_a_page() {
    const BUNDLES: usize = 3000;
    let (machine, fake) = (Machine::new(), Fake::new("registry"));
    let cache = machine.cache();
    for n in 0..BUNDLES {
        let id = format!("acme/kit-{n}@1.0.0");
        fake.publish(&id, &[]);
        cache_version(&cache, &id, Info::default(), &[], 0);
    }
    for sources in [&[][..], &[&fake]] {
        let process = machine.process(sources);
        let ino = process.ino("acme").await;
        let before = process.cache.scans();
        let mut names = list_in_pages(&process, ino).await;
        assert_eq!(names.len(), 2 * BUNDLES + 2);
        names.sort();
        names.dedup();
        assert_eq!(names.len(), 2 * BUNDLES + 2, "each line once");
        // One for what there is, one for where its bare name points (again for the line that no
        // longer fits on a page), and a few for the namespace.
        let scans = process.cache.scans() - before;
        assert!(scans <= 2 * BUNDLES as u64 + 100, "{scans} scans");
        // The kernel asks for the rest of a listing that it has begun; nothing is made anew.
        let before = process.cache.scans();
        for _ in 0..20 {
            answer(process.fs.getattr(ino)).await.unwrap();
            answer(process.fs.directory(ino)).await.unwrap();
        }
        assert_eq!(process.cache.scans(), before);
    }
}

#[tokio::test(start_paused = true)]
async fn a_listing_that_stays_the_same_is_not_made_again_and_one_that_changes_is() {
    let (machine, fake) = (Machine::new(), registry());
    let process = machine.process(&[&fake]);
    let name = namespace("acme");
    let first = process.resolver.list(&name, soon()).await.unwrap();
    advance(LISTING_TTL).await;
    let same = process.resolver.list(&name, soon()).await.unwrap();
    assert_eq!(fake.count("bundles"), 2);
    assert!(Arc::ptr_eq(&first, &same));
    // Offline, what another program adds to the cache is seen a moment later.
    let machine = Machine::new();
    cache_version(&machine.cache(), "acme/kit@1.0.0", Info::default(), &[], 0);
    let offline = machine.process(&[]);
    let first = offline.resolver.list(&name, soon()).await.unwrap();
    cache_version(&machine.cache(), "acme/kit@2.0.0", Info::default(), &[], 0);
    let meanwhile = offline.resolver.list(&name, soon()).await.unwrap();
    assert!(Arc::ptr_eq(&first, &meanwhile));
    advance(ABSENCE_TTL).await;
    assert_eq!(
        offline.list("acme").await.unwrap(),
        ["kit", "kit@1.0.0", "kit@2.0.0"]
    );
}

#[tokio::test(start_paused = true)]
async fn a_bundle_without_listed_versions_has_its_bare_name_unless_all_of_them_are_yanked() {
    let (machine, fake) = (Machine::new(), registry());
    let process = machine.process(&[&fake]);
    // A lookup finds nothing, and nobody can say which versions there are.
    fake.set_rule(|call| match call {
        "versions acme/kit" => Some(Fault::Fail(unreachable())),
        "resolve acme/kit@latest" => Some(Fault::Fail(Error::not_found("kit"))),
        _ => None,
    });
    assert!(process.find("acme/kit").await.unwrap().is_none());
    let ino = process.ino("acme").await;
    let listed = async || {
        let mut names = list_in_pages(&process, ino).await;
        names.retain(|name| !name.starts_with('.'));
        names.sort();
        names
    };
    assert_eq!(listed().await, ["kit", "other", "other@0.1.0"]);
    fake.heal();
    for id in ["acme/kit@1.0.0", "acme/kit@2.0.0"] {
        fake.set_state(id, State::Yanked);
    }
    advance(LISTING_TTL).await;
    assert_eq!(listed().await, ["other", "other@0.1.0"]);
    // What was said last counts while nobody can say.
    fake.break_calls("", Fault::Fail(unreachable()));
    advance(2 * LISTING_TTL).await;
    assert_eq!(listed().await, ["other", "other@0.1.0"]);
    fake.heal();
    fake.set_state("acme/kit@1.0.0", State::Published);
    advance(LISTING_TTL).await;
    assert_eq!(listed().await, ["kit", "kit@1.0.0", "other", "other@0.1.0"]);
}

#[tokio::test(start_paused = true)]
async fn a_bundle_with_a_dot_in_its_name_is_found_without_a_catalogue() {
    let (machine, fake) = (Machine::new(), Fake::new("registry"));
    for id in ["acme/next.js@1.0.0", "acme/v1.2@1.0.0"] {
        fake.publish(id, &[]);
    }
    fake.break_calls(
        "bundles",
        Fault::Fail(Error::Rejected {
            what: "acme".to_owned(),
            origin: "fake".to_owned(),
            reason: "it has no catalogue".to_owned(),
        }),
    );
    let process = machine.process(&[&fake]);
    for name in ["next.js", "v1.2", "next.js@^1"] {
        let found = process.find(&format!("acme/{name}")).await.unwrap();
        assert!(found.is_some(), "{name}");
    }
    let calls = fake.calls();
    for name in [
        "index.js",
        "package.json",
        "AGENTS.md",
        ".next.js",
        "build.rs",
    ] {
        let found = process.find(&format!("acme/{name}")).await.unwrap();
        assert!(found.is_none(), "{name}");
    }
    assert_eq!(fake.calls(), calls);
}
