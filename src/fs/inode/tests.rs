//! Numbers, and what they stand for.

use super::*;

fn inodes() -> Inodes {
    let host: HostId = "api.musher.dev".parse().unwrap();
    Inodes::new(host, Arc::new(Journal::in_memory()))
}

fn tagged(text: &str) -> (String, Tagged) {
    let host: HostId = "api.musher.dev".parse().unwrap();
    let version: VersionRef = text.parse().unwrap();
    (journal_key(&host, &version), Tagged { host, version })
}

#[test]
fn numbers_are_part_of_the_format() {
    // Computed independently: changing these breaks every bind mount and build cache.
    let inodes = inodes();
    let name = Name::Namespace("acme".parse().unwrap());
    let (namespace, _) = inodes.name(name, Known::Guessed);
    assert_eq!(
        namespace,
        NAME_BIT | first_bits("musherfs-1/api.musher.dev/acme", 52)
    );
    let (text, key) = tagged("acme/kit@1.2.0");
    assert_eq!(text, "api.musher.dev/acme/kit@1.2.0");
    assert_eq!(
        inodes.tag(&text, key),
        tag_of("api.musher.dev/acme/kit@1.2.0", 0)
    );
    assert_eq!(first_bits("", 64), 0xe3b0_c442_98fc_1c14);
    assert_eq!(first_bits("", 35), 0xe3b0_c442_98fc_1c14 >> 29);
}

#[test]
fn a_pack_is_another_node_with_another_list_of_files_and_a_registrys_version_is_not() {
    let tables = [Digest::of(b"one"), Digest::of(b"two")];
    for (host, are_others) in [
        (HostId::local(), true),
        ("api.musher.dev".parse().unwrap(), false),
    ] {
        let version = "acme/kit@1.2.0-rc.1+b".parse().unwrap();
        let key = Tagged { host, version };
        let [one, two] = tables.map(|table| key.text(|| table));
        assert_eq!(one != two, are_others);
        for text in [one, two] {
            assert_eq!(Tagged::parse(&text).as_ref(), Some(&key), "{text}");
        }
    }
    for wrong in [
        "",
        "api.musher.dev",
        "api.musher.dev/acme",
        "/acme/kit@1.0.0",
    ] {
        assert_eq!(Tagged::parse(wrong), None, "{wrong}");
    }
}

#[test]
fn numbers_have_at_most_53_bits_and_say_what_they_are() {
    let inodes = inodes();
    let name = Name::Link("acme/kit".parse().unwrap(), Selector::Latest);
    let (link, _) = inodes.name(name, Known::Found);
    let (text, key) = tagged("acme/kit@1.2.0");
    let root = inodes.tag(&text, key) << INDEX_BITS;
    let file = entry(root, 131_071);
    assert!(link < 1 << 53 && file < 1 << 52);
    assert!(matches!(inodes.node(link), Some(Node::Name(_))));
    let Some(Node::Entry(tagged, index)) = inodes.node(file) else {
        panic!("not an entry")
    };
    assert_eq!(
        (tagged.version.to_string().as_str(), index),
        ("acme/kit@1.2.0", 131_071)
    );
    assert_eq!(version_root(file), root);
    assert!(inodes.node(3).is_none());
}

#[test]
fn colliding_versions_get_different_numbers_that_are_remembered() {
    let inodes = inodes();
    let (text, key) = tagged("acme/kit@1.2.0");
    let (other_text, other) = tagged("acme/other@1.0.0");
    // The other version has the number already.
    write(&inodes.tags).insert(tag_of(&text, 0), Arc::new(other));
    let tag = inodes.tag(&text, key);
    assert_eq!(tag, tag_of(&text, 1));
    assert_eq!(inodes.journal.salt(&text), 1);
    assert_eq!(inodes.tag(&text, tagged("acme/kit@1.2.0").1), tag);
    assert_ne!(inodes.tag(&other_text, tagged("acme/other@1.0.0").1), tag);
}

#[test]
fn another_process_knows_the_numbers_that_were_given_out() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("host.jsonl");
    let host: HostId = "api.musher.dev".parse().unwrap();
    let journal = || Arc::new(Journal::open(&path));
    let first = Inodes::new(host.clone(), journal());
    let name = Name::Namespace("acme".parse().unwrap());
    let (namespace, _) = first.name(name, Known::Found);
    let name = Name::Link("acme/kit".parse().unwrap(), "^1.2".parse().unwrap());
    let (link, _) = first.name(name, Known::Found);
    let name = Name::Namespace("guessed".parse().unwrap());
    let (guessed, _) = first.name(name, Known::Guessed);
    assert!(first.node(guessed).is_some());
    let (text, key) = tagged("acme/kit@1.2.0");
    first
        .journal
        .remember_table(&text, Digest::of(b""))
        .unwrap();
    let root = first.tag(&text, key) << INDEX_BITS;
    drop(first);
    let second = Inodes::new(host, journal());
    assert!(
        matches!(second.node(namespace), Some(Node::Name(name)) if matches!(*name, Name::Namespace(_)))
    );
    assert!(matches!(second.node(link), Some(Node::Name(name)) if matches!(*name, Name::Link(..))));
    assert!(matches!(
        second.node(entry(root, 7)),
        Some(Node::Entry(_, 7))
    ));
    // Nothing was found behind it, so nothing is remembered of it.
    assert!(second.node(guessed).is_none());
}

#[test]
fn numbers_that_a_predecessor_gives_out_to_its_last_moment_are_known() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("host.jsonl");
    let host: HostId = "api.musher.dev".parse().unwrap();
    let successor = Inodes::new(host.clone(), Arc::new(Journal::open(&path)));
    let predecessor = Inodes::new(host, Arc::new(Journal::open(&path)));
    let give_out = |slug: &str| {
        let name = Name::Link(format!("acme/{slug}").parse().unwrap(), Selector::Latest);
        let (link, _) = predecessor.name(name, Known::Found);
        let (text, key) = tagged(&format!("acme/{slug}@1.0.0"));
        let journal = &predecessor.journal;
        journal.remember_table(&text, Digest::of(b"")).unwrap();
        (link, predecessor.tag(&text, key) << INDEX_BITS)
    };
    let (link, _) = give_out("kit");
    assert_eq!(successor.names(), [link]);
    // Also after it has looked once.
    let (link, version) = give_out("later");
    assert!(successor.node(version).is_some() && successor.node(link).is_some());
    assert_eq!(successor.names().len(), 2);
}

fn guess(inodes: &Inodes, n: usize) -> (u64, Crowd) {
    let name = Name::Namespace(format!("guess-{n}").parse().unwrap());
    inodes.name(name, Known::Guessed)
}

#[test]
fn guessed_names_are_forgotten_but_not_those_that_the_kernel_holds_or_something_is_behind() {
    let inodes = inodes();
    let (held, _) = guess(&inodes, 0);
    inodes.entered(held);
    inodes.entered(held);
    let (unheld, _) = guess(&inodes, 1);
    let (found, _) = guess(&inodes, 2);
    let name = Name::Namespace("guess-2".parse().unwrap());
    assert_eq!(inodes.name(name, Known::Found).0, found);
    let mut forgotten = Vec::new();
    let mut add = |many: std::ops::Range<usize>| {
        let crowds = many.map(|n| guess(&inodes, n).1);
        crowds.for_each(|crowd| forgotten.extend(crowd.forgotten));
        assert_eq!(inodes.passing().len(), MOST_PASSING);
        forgotten.clone()
    };
    let gone = add(10..10 + 2 * MOST_PASSING);
    assert!(gone.contains(&unheld) && inodes.node(unheld).is_none());
    assert!(!gone.contains(&held) && inodes.node(held).is_some());
    assert!(inodes.node(found).is_some());
    assert_eq!(inodes.journal.names(), ["guess-2"]);
    // It is the same one when somebody finds it again.
    assert_eq!(guess(&inodes, 1).0, unheld);
    // What the kernel lets go goes when there is no room.
    inodes.forget(held, 1);
    let gone = add(100_000..100_000 + 2 * MOST_PASSING);
    assert!(!gone.contains(&held));
    inodes.forget(held, 1);
    let gone = add(200_000..200_000 + 2 * MOST_PASSING);
    assert!(gone.contains(&held) && inodes.node(held).is_none());
}

#[test]
fn names_that_the_kernel_holds_are_told_when_there_are_too_many() {
    let inodes = inodes();
    for n in 0..MOST_PASSING {
        inodes.entered(guess(&inodes, n).0);
    }
    let (_, crowd) = guess(&inodes, MOST_PASSING);
    let oldest: Vec<u64> = (0..LOOKED_AT).map(|n| guess(&inodes, n).0).collect();
    assert_eq!(crowd.held, oldest);
    assert!(crowd.forgotten.is_empty());
    // Not again when they are looked up, however often, nor when their turn comes again.
    for n in 0..MOST_PASSING {
        assert_eq!(guess(&inodes, n).1, Crowd::default());
    }
    let mut told = crowd.held;
    for n in MOST_PASSING + 1..2 * MOST_PASSING {
        let (ino, crowd) = guess(&inodes, n);
        inodes.entered(ino);
        told.extend(crowd.held);
    }
    let all = told.len();
    told.sort_unstable();
    told.dedup();
    assert_eq!(told.len(), all, "asked twice");
}
