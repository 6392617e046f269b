//! Names that move: fresh for five minutes, asked before they are answered, never lost to an error.

use std::sync::Arc;
use std::time::Duration;

use musherfs::cache::REF_TTL;
use musherfs::error::Error;
use musherfs::manifest::{Info, State};
use musherfs::metrics::Counter;
use musherfs::resolve::ABSENCE_TTL;
use musherfs::store::Policy;
use tokio::sync::Semaphore;
use tokio::time::advance;

use crate::fake::{Fake, Fault, oci_digest, unreachable};
use crate::{Machine, cache_ref, cache_version, eventually, soon, split};

fn registry() -> Arc<Fake> {
    let fake = Fake::new("registry");
    fake.publish("acme/kit@1.0.0", &[("a.md", "one\n")]);
    fake
}

fn respect_removal() -> Policy {
    Policy {
        respect_removal: true,
        ..Policy::default()
    }
}

fn second() -> Duration {
    Duration::from_secs(1)
}

#[tokio::test(start_paused = true)]
async fn a_fresh_ref_costs_no_request() {
    let (machine, fake) = (Machine::new(), registry());
    let process = machine.process(&[&fake]);
    for _ in 0..3 {
        assert_eq!(process.target("acme/kit").await.unwrap(), "1.0.0");
        advance(REF_TTL / 4).await;
    }
    assert_eq!(fake.calls(), ["resolve acme/kit@latest"]);
    // Nor in another process, as long as what the first one wrote is fresh, and can be followed.
    process.load("acme/kit@1.0.0").await.unwrap();
    let other = machine.process(&[&fake]);
    assert_eq!(other.target("acme/kit").await.unwrap(), "1.0.0");
    assert_eq!(fake.count("resolve"), 1);
}

#[tokio::test(start_paused = true)]
async fn an_expired_ref_is_asked_before_it_is_answered() {
    let (machine, fake) = (Machine::new(), registry());
    let process = machine.process(&[&fake]);
    assert_eq!(process.target("acme/kit").await.unwrap(), "1.0.0");
    fake.publish("acme/kit@2.0.0", &[]);
    advance(REF_TTL).await;
    let (bundle, selector) = split("acme/kit");
    assert!(process.resolver.resolve_now(&bundle, &selector).is_none());
    assert_eq!(process.target("acme/kit").await.unwrap(), "2.0.0");
    // So is one that another tool wrote long ago.
    let machine = Machine::new();
    cache_ref(&machine.cache(), "acme/kit", "1.0.0", 1);
    let process = machine.process(&[&fake]);
    assert_eq!(process.target("acme/kit").await.unwrap(), "2.0.0");
}

#[tokio::test]
async fn a_fresh_ref_on_disk_to_a_version_that_is_not_cached_is_asked_for() {
    let (machine, fake) = (Machine::new(), registry());
    cache_ref(&machine.cache(), "acme/kit", "7.0.0", 0);
    let process = machine.process(&[&fake]);
    assert_eq!(process.target("acme/kit").await.unwrap(), "1.0.0");
    assert_eq!(fake.count("resolve"), 1);
    // Unlike one that can be followed.
    let (machine, fake) = (Machine::new(), registry());
    cache_version(&machine.cache(), "acme/kit@0.9.0", Info::default(), &[], 0);
    cache_ref(&machine.cache(), "acme/kit", "0.9.0", 0);
    let process = machine.process(&[&fake]);
    assert_eq!(process.target("acme/kit").await.unwrap(), "0.9.0");
    assert_eq!(fake.count("resolve"), 0);
}

#[tokio::test]
async fn a_ref_that_the_registry_denies_is_the_best_that_is_cached_each_time() {
    let (machine, fake) = (Machine::new(), Fake::new("registry"));
    cache_version(&machine.cache(), "acme/kit@0.9.0", Info::default(), &[], 0);
    let process = machine.process(&[&fake]);
    // The second time the denial is remembered.
    for _ in 0..2 {
        assert_eq!(process.target("acme/kit").await.unwrap(), "0.9.0");
    }
    assert_eq!(fake.count("resolve"), 1);
}

#[tokio::test]
async fn concurrent_callers_share_one_request() {
    let (machine, fake) = (Machine::new(), registry());
    let process = machine.process(&[&fake]);
    let gate = Arc::new(Semaphore::new(0));
    fake.break_calls("resolve", Fault::Wait(Arc::clone(&gate)));
    let callers: Vec<_> = (0..16)
        .map(|_| {
            let resolver = Arc::clone(&process.resolver);
            let (bundle, selector) = split("acme/kit");
            tokio::spawn(async move { resolver.resolve(&bundle, &selector, soon()).await })
        })
        .collect();
    eventually(|| process.count(Counter::Joined) == 15).await;
    gate.add_permits(16);
    for caller in callers {
        assert_eq!(caller.await.unwrap().unwrap().version.as_str(), "1.0.0");
    }
    assert_eq!(fake.count("resolve"), 1);
}

#[tokio::test(start_paused = true)]
async fn an_error_keeps_the_last_answer_and_is_soon_forgotten() {
    let (machine, fake) = (Machine::new(), registry());
    let process = machine.process(&[&fake]);
    process.target("acme/kit").await.unwrap();
    for fault in [Fault::Fail(unreachable()), Fault::Hang] {
        fake.break_calls("", fault);
        advance(REF_TTL).await;
        let before = fake.count("resolve");
        for _ in 0..3 {
            assert_eq!(process.target("acme/kit").await.unwrap(), "1.0.0");
        }
        assert_eq!(fake.count("resolve"), before + 1);
    }
    fake.heal();
    fake.publish("acme/kit@2.0.0", &[]);
    advance(ABSENCE_TTL).await;
    assert_eq!(process.target("acme/kit").await.unwrap(), "2.0.0");
}

#[tokio::test(start_paused = true)]
async fn a_registry_that_knows_nothing_any_more_takes_nothing_away() {
    let (machine, fake) = (Machine::new(), registry());
    let process = machine.process(&[&fake]);
    process.target("acme/kit").await.unwrap();
    process.load("acme/kit@1.0.0").await.unwrap();
    fake.break_calls("", Fault::Fail(Error::not_found("anything")));
    advance(REF_TTL).await;
    assert_eq!(process.target("acme/kit").await.unwrap(), "1.0.0");
    // Also where the name was never asked for on this machine, but something for it is cached.
    assert_eq!(process.target("acme/kit@^1").await.unwrap(), "1.0.0");
    let respecting = machine.process_under(&[&fake], respect_removal());
    // What another process wrote is fresh for a while.
    respecting.target("acme/kit").await.unwrap();
    advance(REF_TTL).await;
    let error = respecting.target("acme/kit").await.unwrap_err();
    assert!(matches!(error, Error::NotFound { .. }), "{error}");
}

#[tokio::test(start_paused = true)]
async fn an_absence_is_remembered_for_five_seconds() {
    let (machine, fake) = (Machine::new(), registry());
    let process = machine.process(&[&fake]);
    for _ in 0..3 {
        let error = process.target("acme/none").await.unwrap_err();
        assert!(matches!(error, Error::NotFound { .. }), "{error}");
    }
    assert_eq!(fake.count("resolve"), 1);
    fake.publish("acme/none@1.0.0", &[]);
    advance(ABSENCE_TTL - second()).await;
    assert!(process.target("acme/none").await.is_err());
    advance(second()).await;
    assert_eq!(process.target("acme/none").await.unwrap(), "1.0.0");
}

#[tokio::test(start_paused = true)]
async fn an_error_is_never_remembered_as_an_absence() {
    let (machine, fake) = (Machine::new(), registry());
    let process = machine.process(&[&fake]);
    for fault in [Fault::Fail(unreachable()), Fault::Hang] {
        fake.break_calls("", fault);
        let error = process.target("acme/kit").await.unwrap_err();
        assert!(error.is_outage(), "{error}");
    }
    fake.heal();
    assert_eq!(process.target("acme/kit").await.unwrap(), "1.0.0");
}

#[tokio::test(start_paused = true)]
async fn refs_in_use_are_refreshed_ahead_and_others_are_not() {
    let (machine, fake) = (Machine::new(), registry());
    fake.point("acme/kit", "stable", "1.0.0");
    let process = machine.process(&[&fake]);
    process.target("acme/kit").await.unwrap();
    process.target("acme/kit@stable").await.unwrap();
    process.resolver.refresh_ahead().await;
    assert_eq!(fake.count("resolve"), 2, "they have just been asked for");
    advance(REF_TTL - 30 * second()).await;
    process.target("acme/kit").await.unwrap();
    process.resolver.refresh_ahead().await;
    assert_eq!(fake.count("resolve"), 4);
    fake.publish("acme/kit@2.0.0", &[]);
    advance(REF_TTL - 30 * second()).await;
    // Only one was used meanwhile.
    process.resolver.refresh_ahead().await;
    assert_eq!(fake.count("resolve acme/kit@latest"), 3);
    assert_eq!(fake.count("resolve acme/kit@stable"), 2);
    let (bundle, selector) = split("acme/kit");
    let now = process.resolver.resolve_now(&bundle, &selector);
    assert_eq!(now.unwrap().unwrap().version.as_str(), "2.0.0");
}

#[tokio::test(start_paused = true)]
async fn a_yanked_version_is_not_chosen() {
    let (machine, fake) = (Machine::new(), registry());
    fake.publish("acme/kit@2.0.0", &[]);
    fake.set_state("acme/kit@2.0.0", State::Yanked);
    // This registry goes on naming it.
    for alias in ["latest", "stable", "^2", "*"] {
        fake.point("acme/kit", alias, "2.0.0");
    }
    let process = machine.process(&[&fake]);
    assert_eq!(process.target("acme/kit").await.unwrap(), "1.0.0");
    assert_eq!(process.target("acme/kit@*").await.unwrap(), "1.0.0");
    for name in ["acme/kit@stable", "acme/kit@^2"] {
        let error = process.target(name).await.unwrap_err();
        assert!(matches!(error, Error::NotFound { .. }), "{error}");
    }
    // Whoever names it, gets it.
    assert_eq!(process.target("acme/kit@2.0.0").await.unwrap(), "2.0.0");
    let digest = format!("acme/kit@{}", oci_digest("acme/kit@2.0.0"));
    assert_eq!(process.target(&digest).await.unwrap(), "2.0.0");
}

#[tokio::test(start_paused = true)]
async fn a_ref_does_not_keep_a_version_that_is_yanked_meanwhile() {
    let (machine, fake) = (Machine::new(), registry());
    fake.point("acme/kit", "stable", "1.0.0");
    let process = machine.process(&[&fake]);
    for name in ["acme/kit@stable", "acme/kit@^1"] {
        assert_eq!(process.target(name).await.unwrap(), "1.0.0");
    }
    fake.set_state("acme/kit@1.0.0", State::Yanked);
    advance(REF_TTL).await;
    for name in ["acme/kit@stable", "acme/kit@^1"] {
        let error = process.target(name).await.unwrap_err();
        assert!(matches!(error, Error::NotFound { .. }), "{name}: {error}");
    }
    // The cache of a machine that is offline says the same.
    let machine = Machine::new();
    let yanked = Info {
        state: State::Yanked,
        ..Info::default()
    };
    cache_version(&machine.cache(), "acme/kit@2.0.0", yanked, &[], 0);
    cache_version(&machine.cache(), "acme/kit@1.0.0", Info::default(), &[], 0);
    cache_ref(&machine.cache(), "acme/kit", "2.0.0", 0);
    let offline = machine.process(&[]);
    assert_eq!(offline.target("acme/kit").await.unwrap(), "1.0.0");
}

fn many() -> Arc<Fake> {
    let fake = registry();
    for version in ["1.1.0", "1.2.0", "1.3.0-beta.1", "2.0.0", "2.1.0-rc.1"] {
        fake.publish(&format!("acme/kit@{version}"), &[]);
    }
    fake
}

#[tokio::test]
async fn ranges_are_asked_of_the_registry_first() {
    let (machine, fake) = (Machine::new(), many());
    fake.know_ranges();
    let process = machine.process(&[&fake]);
    assert_eq!(process.target("acme/kit@^1").await.unwrap(), "1.2.0");
    assert_eq!(process.target("acme/kit@~1.1").await.unwrap(), "1.1.0");
    assert_eq!(fake.count("versions"), 0);
}

#[tokio::test]
async fn ranges_that_the_registry_does_not_know_are_chosen_from_its_list() {
    let fake = many();
    fake.set_state("acme/kit@1.2.0", State::Yanked);
    let not_found = Fault::Fail(Error::not_found("a version ^1"));
    for refusal in [None, Some(not_found)] {
        if let Some(fault) = refusal {
            fake.break_calls("resolve", fault);
        }
        let machine = Machine::new();
        let process = machine.process(&[&fake]);
        for (range, chosen) in [
            ("^1", "1.1.0"),
            ("1", "1.1.0"),
            ("1.x", "1.1.0"),
            ("*", "2.0.0"),
            (">=1.3.0-alpha, <2", "1.3.0-beta.1"),
            ("^2.1.0-rc", "2.1.0-rc.1"),
        ] {
            let target = process.target(&format!("acme/kit@{range}")).await;
            assert_eq!(target.unwrap(), chosen, "{range}");
        }
        let error = process.target("acme/kit@^3").await.unwrap_err();
        assert!(matches!(error, Error::NotFound { .. }), "{error}");
    }
}

#[tokio::test]
async fn a_registry_that_ignores_ranges_is_not_believed() {
    let (machine, fake) = (Machine::new(), many());
    fake.point("acme/kit", "^1", "2.0.0");
    fake.point("acme/kit", "^2", "2.0.0");
    let process = machine.process(&[&fake]);
    assert_eq!(process.target("acme/kit@^1").await.unwrap(), "1.2.0");
    assert_eq!(process.target("acme/kit@^2").await.unwrap(), "2.0.0");
    assert_eq!(fake.count("versions"), 1);
}

#[tokio::test]
async fn an_outage_of_the_list_is_no_absence() {
    let (machine, fake) = (Machine::new(), many());
    fake.break_calls("versions", Fault::Fail(unreachable()));
    let process = machine.process(&[&fake]);
    let error = process.target("acme/kit@^1").await.unwrap_err();
    assert!(matches!(error, Error::Unreachable { .. }), "{error}");
    fake.heal();
    assert_eq!(process.target("acme/kit@^1").await.unwrap(), "1.2.0");
}

#[tokio::test]
async fn pre_releases_are_the_latest_only_where_there_is_nothing_else() {
    let machine = Machine::new();
    for id in ["acme/kit@1.0.0", "acme/kit@2.0.0-rc.1", "acme/new@0.1.0-a"] {
        cache_version(&machine.cache(), id, Info::default(), &[], 0);
    }
    let offline = machine.process(&[]);
    assert_eq!(offline.target("acme/kit").await.unwrap(), "1.0.0");
    assert_eq!(offline.target("acme/new").await.unwrap(), "0.1.0-a");
}

#[tokio::test(start_paused = true)]
async fn a_digest_names_one_version_for_ever() {
    let (machine, fake) = (Machine::new(), many());
    let process = machine.process(&[&fake]);
    let name = format!("acme/kit@{}", oci_digest("acme/kit@1.1.0"));
    for _ in 0..2 {
        assert_eq!(process.target(&name).await.unwrap(), "1.1.0");
        advance(REF_TTL * 100).await;
    }
    assert_eq!(fake.count("resolve"), 1);
    process.load("acme/kit@1.1.0").await.unwrap();
    assert_eq!(machine.process(&[]).target(&name).await.unwrap(), "1.1.0");
}

#[tokio::test]
async fn an_answer_with_another_digest_is_refused() {
    let (machine, fake) = (Machine::new(), many());
    let digest = oci_digest("acme/kit@1.1.0").to_string();
    fake.point("acme/kit", &digest, "1.2.0");
    let process = machine.process(&[&fake]);
    let error = process.target(&format!("acme/kit@{digest}")).await;
    assert!(matches!(error, Err(Error::Malformed { .. })));
}

#[tokio::test]
async fn a_machine_that_has_nothing_but_its_cache_answers_from_it() {
    let machine = Machine::new();
    let cache = machine.cache();
    let files = [("a.md", "one\n")];
    for id in ["acme/kit@1.0.0", "acme/kit@1.4.0", "tools/lint@0.3.0"] {
        cache_version(&cache, id, Info::default(), &files, 1000);
    }
    cache_ref(&cache, "acme/kit@stable", "1.0.0", 1000);
    let dead = Fake::new("dead");
    dead.break_calls("", Fault::Fail(unreachable()));
    for sources in [&[][..], &[&dead]] {
        let process = machine.process(sources);
        assert_eq!(process.target("acme/kit").await.unwrap(), "1.4.0");
        assert_eq!(process.target("acme/kit@stable").await.unwrap(), "1.0.0");
        assert_eq!(process.target("acme/kit@~1.0").await.unwrap(), "1.0.0");
        let listed = process.list("acme").await.unwrap();
        assert_eq!(listed, ["kit", "kit@1.0.0", "kit@1.4.0"]);
        let root = process.resolver.root(soon()).await;
        let root: Vec<_> = root.iter().map(ToString::to_string).collect();
        assert_eq!(root, ["acme", "tools"]);
        assert_eq!(
            process.read("acme/kit@1.4.0", "a.md").await.unwrap(),
            "one\n"
        );
    }
    let offline = machine.process(&[]);
    assert!(matches!(
        offline.target("acme/none").await,
        Err(Error::NotFound { .. })
    ));
}

#[tokio::test(start_paused = true)]
async fn names_that_programs_look_for_everywhere_cost_no_request() {
    let (machine, fake) = (Machine::new(), registry());
    let process = machine.process(&[&fake]);
    for name in ["AGENTS.md", "package.json", "Makefile", "HEAD", "setup.py"] {
        let error = process.target(&format!("acme/{name}")).await.unwrap_err();
        assert!(matches!(error, Error::NotFound { .. }), "{error}");
    }
    assert!(fake.calls().is_empty());
    // Unless there is such a bundle.
    fake.publish("acme/three.js@1.0.0", &[]);
    process.list("acme").await.unwrap();
    assert_eq!(process.target("acme/three.js").await.unwrap(), "1.0.0");
    advance(REF_TTL).await;
    assert_eq!(process.target("acme/three.js").await.unwrap(), "1.0.0");
}
