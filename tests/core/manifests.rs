//! Manifests: served whatever their age, refreshed behind the answer, never contradicted.

use std::fs;
use std::sync::Arc;
use std::time::Duration;

use musherfs::digest::Digest;
use musherfs::error::Error;
use musherfs::fs::Found;
use musherfs::manifest::{Info, State};
use musherfs::metrics::Counter;
use musherfs::store::Policy;
use tokio::sync::Semaphore;

use crate::fake::{Fake, Fault, unreachable};
use crate::{Machine, Process, answer, cache_version, eventually, read, soon, version};

const KIT: &str = "acme/kit@1.0.0";
const FILES: &[(&str, &str)] = &[("a.md", "alpha\n")];

fn registry() -> Arc<Fake> {
    let fake = Fake::new("registry");
    fake.publish(KIT, FILES);
    fake
}

/// A machine whose cache has had the version for so many hours.
fn machine_with(hours: i64) -> Machine {
    let machine = Machine::new();
    cache_version(&machine.cache(), KIT, Info::default(), FILES, hours);
    machine
}

fn deny_yanked() -> Policy {
    Policy {
        deny_yanked: true,
        ..Policy::default()
    }
}

fn respect_removal() -> Policy {
    Policy {
        respect_removal: true,
        ..Policy::default()
    }
}

#[tokio::test]
async fn concurrent_callers_share_one_request() {
    let (machine, fake) = (Machine::new(), registry());
    let process = machine.process(&[&fake]);
    let gate = Arc::new(Semaphore::new(0));
    fake.break_calls("manifest", Fault::Wait(Arc::clone(&gate)));
    let callers: Vec<_> = (0..16)
        .map(|_| {
            let store = Arc::clone(&process.store);
            tokio::spawn(async move { store.manifest(&version(KIT), soon()).await })
        })
        .collect();
    eventually(|| process.count(Counter::Joined) == 15).await;
    gate.add_permits(16);
    for caller in callers {
        caller.await.unwrap().unwrap();
    }
    assert_eq!(fake.calls(), ["manifest acme/kit@1.0.0"]);
}

#[tokio::test]
async fn a_fresh_manifest_costs_no_request() {
    let (machine, fake) = (machine_with(23), registry());
    let process = machine.process(&[&fake]);
    assert_eq!(process.read(KIT, "a.md").await.unwrap(), "alpha\n");
    assert!(fake.calls().is_empty());
}

#[tokio::test]
async fn a_stale_manifest_is_served_and_refreshed_behind_the_answer() {
    let (machine, fake) = (machine_with(25), registry());
    let gate = Arc::new(Semaphore::new(0));
    fake.break_calls("manifest", Fault::Wait(Arc::clone(&gate)));
    let process = machine.process(&[&fake]);
    let answer = process.store.manifest_now(&version(KIT)).unwrap().unwrap();
    assert!(answer.remaining().is_zero());
    fake.called("manifest", 1).await;
    gate.add_permits(1);
    let fresh = || {
        let known = process.store.manifest_now(&version(KIT));
        known.is_some_and(|known| !known.unwrap().remaining().is_zero())
    };
    eventually(fresh).await;
    assert_eq!(fake.count("manifest"), 1);
}

#[tokio::test]
async fn a_stale_manifest_that_cannot_be_refreshed_is_not_asked_for_with_every_lookup() {
    let (machine, fake) = (machine_with(25), registry());
    fake.break_calls("", Fault::Fail(unreachable()));
    let process = machine.process(&[&fake]);
    let lookup = || process.store.manifest_now(&version(KIT)).unwrap().unwrap();
    eventually(|| !lookup().remaining().is_zero()).await;
    let asked = fake.count("manifest");
    lookup();
    assert_eq!(fake.count("manifest"), asked);
}

#[tokio::test]
async fn a_policy_against_yanked_versions_asks_before_it_serves_a_stale_manifest() {
    let (machine, fake) = (machine_with(25), registry());
    // An outage takes nothing away.
    fake.break_calls("", Fault::Fail(unreachable()));
    let process = machine.process_under(&[&fake], deny_yanked());
    assert!(process.store.manifest_now(&version(KIT)).is_none());
    process.load(KIT).await.unwrap();
    fake.heal();
    fake.set_state(KIT, State::Yanked);
    let process = machine.process_under(&[&fake], deny_yanked());
    let error = process.load(KIT).await.unwrap_err();
    assert!(matches!(error, Error::Yanked { .. }), "{error}");
    // Whoever holds it already keeps it.
    let held = process.store.held_now(&version(KIT)).unwrap();
    assert_eq!(
        read(&process.store, &held, "a.md").await.unwrap(),
        "alpha\n"
    );
}

#[tokio::test]
async fn a_yanked_version_is_served_when_it_is_named_exactly() {
    let (machine, fake) = (Machine::new(), registry());
    fake.set_state(KIT, State::Yanked);
    let process = machine.process(&[&fake]);
    assert_eq!(process.read(KIT, "a.md").await.unwrap(), "alpha\n");
    assert!(process.load(KIT).await.unwrap().is_yanked());
    let denying = machine.process_under(&[&fake], deny_yanked());
    assert!(matches!(denying.load(KIT).await, Err(Error::Yanked { .. })));
}

#[tokio::test]
async fn a_removed_version_stays_unless_removals_are_respected() {
    let (machine, fake) = (machine_with(25), registry());
    fake.remove(KIT);
    let process = machine.process(&[&fake]);
    for _ in 0..2 {
        let fetched = process.store.fetch(&version(KIT), soon()).await;
        assert!(matches!(fetched, Err(Error::NotFound { .. })));
        assert_eq!(process.read(KIT, "a.md").await.unwrap(), "alpha\n");
    }
    let machine = machine_with(25);
    let respecting = machine.process_under(&[&fake], respect_removal());
    // An error is no removal.
    fake.break_calls("", Fault::Fail(unreachable()));
    respecting.load(KIT).await.unwrap();
    fake.heal();
    for _ in 0..2 {
        let error = respecting.load(KIT).await.unwrap_err();
        assert!(matches!(error, Error::NotFound { .. }), "{error}");
    }
    // Also for a process that comes later, when nobody can be asked again.
    for sources in [&[][..], &[&fake]] {
        fake.break_calls("", Fault::Fail(unreachable()));
        let restarted = machine.process_under(sources, respect_removal());
        let error = restarted.load(KIT).await.unwrap_err();
        assert!(matches!(error, Error::NotFound { .. }), "{error}");
        machine.process(sources).load(KIT).await.unwrap();
    }
    fake.heal();
    fake.publish(KIT, FILES);
    respecting.load(KIT).await.unwrap();
    let restarted = machine.process_under(&[], respect_removal());
    restarted.load(KIT).await.unwrap();
}

/// Loads another manifest, where there is room for one.
async fn crowd_memory(process: &Process, fake: &Fake) {
    fake.publish("acme/other@1.0.0", FILES);
    process.load("acme/other@1.0.0").await.unwrap();
    assert!(process.store.in_memory(&version(KIT)).is_none());
}

#[tokio::test]
async fn a_manifest_that_memory_had_no_room_for_is_there_when_its_numbers_are_used() {
    let (machine, fake) = (Machine::new(), registry());
    let policy = Policy {
        manifest_memory: 0,
        ..Policy::default()
    };
    let process = machine.process_under(&[&fake], policy);
    let ino = process.ino("acme/kit@1.0.0/a.md").await;
    crowd_memory(&process, &fake).await;
    let asked = fake.count("manifest acme/kit");
    let (attr, _) = answer(process.fs.getattr(ino)).await.unwrap();
    assert_eq!((attr.ino, attr.size), (ino, 6));
    assert_eq!(fake.count("manifest acme/kit"), asked, "the disk has it");
    // Without the disk, the registry is asked.
    crowd_memory(&process, &fake).await;
    fs::remove_dir_all(machine.dir.path().join("cache")).unwrap();
    let mut buffer = Vec::new();
    let read = answer(process.fs.read(ino, 0, 100, &mut buffer)).await;
    assert_eq!(read.unwrap().unwrap_or(buffer), b"alpha\n");
    assert_eq!(fake.count("manifest acme/kit"), asked + 1);
    // And must say what it said.
    crowd_memory(&process, &fake).await;
    fs::remove_dir_all(machine.dir.path().join("cache")).unwrap();
    fake.publish(KIT, &[("a.md", "ALPHA\n")]);
    let error = answer(process.fs.getattr(ino)).await.unwrap_err();
    assert!(matches!(error, Error::Contradiction { .. }), "{error}");
}

/// Puts a pack of the version into the cache, as if it had been packed on this machine.
fn pack(machine: &Machine, content: &str) {
    let dir = machine.dir.path().join("cache/manifests/_local/acme/kit");
    let json = format!(
        r#"{{"namespace":"acme","slug":"kit","version":"1.0.0","manifest":{{"layers":[
        {{"logicalPath":"a.md","assetType":"prompt","contentSha256":"{}","sizeBytes":{}}}]}}}}"#,
        Digest::of(content.as_bytes()).hex(),
        content.len(),
    );
    fs::create_dir_all(&dir).unwrap();
    fs::write(dir.join("1.0.0.json"), json).unwrap();
    crate::cache_blob(&machine.cache(), content);
}

#[tokio::test]
async fn a_pack_that_is_made_while_the_registrys_version_is_in_memory_wins_the_next_lookup() {
    let (machine, fake) = (Machine::new(), registry());
    let policy = Policy {
        local_packs: true,
        ..Policy::default()
    };
    let process = machine.process_under(&[&fake], policy);
    assert_eq!(process.read(KIT, "a.md").await.unwrap(), "alpha\n");
    let namespace = process.ino("acme").await;
    let look_up = || async {
        match answer(process.fs.lookup(namespace, "kit@1.0.0")).await {
            Ok(Found::Node(attr, life, _)) => (attr.ino, life),
            _ => panic!("the version is absent"),
        }
    };
    let (before, life) = look_up().await;
    assert!(
        life <= Duration::from_secs(60),
        "the kernel asks again soon"
    );
    pack(&machine, "local\n");
    let (after, life) = look_up().await;
    assert_ne!(before, after, "other content has another number");
    assert!(life <= Duration::from_secs(60));
    assert_eq!(process.read(KIT, "a.md").await.unwrap(), "local\n");
}

#[tokio::test]
async fn a_version_that_changes_raises_the_alarm_and_its_first_content_stays() {
    let (machine, fake) = (Machine::new(), registry());
    let process = machine.process(&[&fake]);
    assert_eq!(process.read(KIT, "a.md").await.unwrap(), "alpha\n");
    fake.publish(KIT, &[("a.md", "ALPHA\n")]);
    let error = process
        .store
        .fetch(&version(KIT), soon())
        .await
        .unwrap_err();
    assert!(matches!(error, Error::Contradiction { .. }), "{error}");
    assert_eq!(process.read(KIT, "a.md").await.unwrap(), "alpha\n");
    // Also when nothing but the journal remembers the first.
    fs::remove_dir_all(machine.dir.path().join("cache")).unwrap();
    let restarted = machine.process(&[&fake]);
    let error = restarted.load(KIT).await.unwrap_err();
    assert!(matches!(error, Error::Contradiction { .. }), "{error}");
    // A cache entry that another tool wrote is no better.
    let other = [("a.md", "ALPHA\n")];
    cache_version(&machine.cache(), KIT, Info::default(), &other, 0);
    let offline = machine.process(&[]);
    assert!(offline.load(KIT).await.is_err());
    fake.publish(KIT, FILES);
    assert_eq!(restarted.read(KIT, "a.md").await.unwrap(), "alpha\n");
    let offline = machine.process(&[]);
    assert_eq!(offline.read(KIT, "a.md").await.unwrap(), "alpha\n");
}

#[tokio::test]
async fn what_a_mirror_lacks_the_registry_is_asked_for() {
    let (machine, mirror, fake) = (Machine::new(), Fake::new("mirror"), registry());
    let process = machine.process_under(&[&mirror, &fake], respect_removal());
    assert_eq!(process.read(KIT, "a.md").await.unwrap(), "alpha\n");
    assert_eq!(process.target("acme/kit").await.unwrap(), "1.0.0");
    assert_eq!(process.list("acme").await.unwrap(), ["kit", "kit@1.0.0"]);
    // With the registry down, the mirror's "no" is no removal, and no absence.
    fake.break_calls("", Fault::Fail(unreachable()));
    let error = process.load("acme/kit@2.0.0").await.unwrap_err();
    assert!(matches!(error, Error::Unreachable { .. }), "{error}");
    let error = process
        .store
        .fetch(&version(KIT), soon())
        .await
        .unwrap_err();
    assert!(matches!(error, Error::Unreachable { .. }), "{error}");
    process.load(KIT).await.unwrap();
}

#[tokio::test]
async fn an_answer_about_another_version_is_not_taken() {
    let (machine, fake) = (Machine::new(), registry());
    let process = machine.process(&[&fake]);
    let resolution = process.resolve("acme/kit").await.unwrap();
    let (document, origin) = (*resolution.document.unwrap()).clone();
    let other = version("acme/kit@2.0.0");
    process.store.learn(&other, document.clone(), &origin).await;
    assert!(process.store.in_memory(&other).is_none());
    process.store.learn(&version(KIT), document, &origin).await;
    assert_eq!(process.read(KIT, "a.md").await.unwrap(), "alpha\n");
    assert_eq!(fake.count("manifest"), 0);
}

#[tokio::test]
async fn without_sources_only_the_cache_answers() {
    let machine = machine_with(1000);
    let offline = machine.process_under(&[], deny_yanked());
    assert_eq!(offline.read(KIT, "a.md").await.unwrap(), "alpha\n");
    let error = offline.load("acme/kit@2.0.0").await.unwrap_err();
    assert!(matches!(error, Error::Offline { .. }), "{error}");
}

#[tokio::test]
async fn a_pack_of_this_machine_wins_over_the_registry_when_that_is_wanted() {
    let (machine, fake) = (machine_with(0), registry());
    pack(&machine, "local\n");
    let refs = machine.dir.path().join("cache/refs/_local/acme/kit");
    fs::create_dir_all(&refs).unwrap();
    let json = r#"{"version":"1.0.0","cachedAt":"2026-01-01T00:00:00Z","expiresAt":"0001-01-01T00:00:00Z"}"#;
    fs::write(refs.join("latest.json"), json).unwrap();
    fake.publish("acme/kit@2.0.0", FILES);
    let usual = machine.process(&[&fake]);
    assert_eq!(usual.read(KIT, "a.md").await.unwrap(), "alpha\n");
    assert_eq!(usual.target("acme/kit").await.unwrap(), "2.0.0");
    let policy = Policy {
        local_packs: true,
        ..Policy::default()
    };
    let local = machine.process_under(&[&fake], policy);
    assert_eq!(local.target("acme/kit").await.unwrap(), "1.0.0");
    assert_eq!(local.read(KIT, "a.md").await.unwrap(), "local\n");
    // Also after the registry was asked for the same version.
    local.store.fetch(&version(KIT), soon()).await.unwrap();
    assert_eq!(local.read(KIT, "a.md").await.unwrap(), "local\n");
    assert_eq!(
        local.read("acme/kit@2.0.0", "a.md").await.unwrap(),
        "alpha\n"
    );
}

/// Puts an entry of another tool's into the cache, and the blob that it names.
fn plant(machine: &Machine, json: &str) {
    cache_version(&machine.cache(), KIT, Info::default(), FILES, 1);
    let root = machine.cache().root().to_owned();
    let dir = root.join(format!("manifests/{}/acme/kit", crate::host()));
    fs::write(dir.join("1.0.0.json"), json).unwrap();
    fs::remove_file(dir.join("1.0.0.meta.json")).unwrap();
}

#[tokio::test]
async fn an_entry_that_takes_long_to_read_is_read_by_those_who_wait() {
    let digest = Digest::of(b"alpha\n").hex();
    let layer = |size: &str| {
        format!(
            r#"{{"assetId":"1","logicalPath":"a.md","assetType":"prompt","contentSha256":"{digest}"{size}}}"#
        )
    };
    let without_sizes = format!(r#"{{"layers":[{}]}}"#, layer(""));
    let space = " ".repeat(2 << 20);
    let large = format!(r#"{{"layers":[{}]{space}}}"#, layer(r#","sizeBytes":6"#));
    for entry in [without_sizes, large] {
        let machine = Machine::new();
        plant(&machine, &entry);
        let process = machine.process(&[]);
        assert!(process.store.manifest_now(&version(KIT)).is_none());
        assert!(process.store.held_now(&version(KIT)).is_none());
        let held = process.store.held(&version(KIT), soon()).await.unwrap();
        assert_eq!(held.manifest.find("a.md").unwrap().size(), 6);
        assert!(
            process.store.manifest_now(&version(KIT)).is_some(),
            "it is in memory"
        );
        // As in another process.
        let process = machine.process(&[]);
        assert_eq!(process.read(KIT, "a.md").await.unwrap(), "alpha\n");
    }
}
