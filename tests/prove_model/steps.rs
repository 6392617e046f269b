//! What can happen, as values that proptest can make and shorten.

use proptest::prelude::*;

/// One thing that happens.
#[derive(Debug, Clone)]
pub(crate) enum Step {
    /// The next version of a bundle, with these of the files that there are (a bit each).
    Publish {
        bundle: usize,
        files: u8,
    },
    Yank {
        bundle: usize,
        version: usize,
    },
    Unyank {
        bundle: usize,
        version: usize,
    },
    /// A tag is made or moves.
    Tag {
        bundle: usize,
        tag: usize,
        version: usize,
    },
    /// Somebody asks the mount.
    Ask(Question, Place),
    /// Something happens to a file of the cache.
    Damage {
        what: Kept,
        which: usize,
        how: Damage,
    },
    /// From now on the registry does this.
    Break(Fault),
    /// From now on the registry works.
    Mend {
        remount: bool,
    },
    /// The mount is made again; the answers for names on disk count as fresh, or as old.
    Remount {
        expired: bool,
    },
    /// `kill -9` of the daemon.
    Kill,
    /// The mount is made again, with an empty cache.
    Wipe,
}

/// What is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Question {
    Stat,
    /// The whole content, past the kernel's pages or not.
    Read {
        forget: bool,
    },
    List,
    Readlink,
    Xattr(Attribute),
    Write(Write),
    /// The names in the place's namespace.
    ListNamespace,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Attribute {
    Digest,
    Version,
    State,
    /// `user.` something that there is not.
    Unknown,
    /// `security.` something.
    Foreign,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Write {
    Open,
    Create,
    Remove,
    MakeDirectory,
    Rename,
    Mode,
    Truncate,
    Symlink,
    SetXattr,
}

/// A place below the mountpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) bundle: usize,
    pub(crate) name: Name,
    /// An index into the paths that are asked for; the name itself if `None`.
    pub(crate) path: Option<usize>,
}

/// How a bundle is named.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Name {
    Bare,
    Latest,
    Version(usize),
    Tag(usize),
    /// `@^1`, which is all versions.
    Range,
    /// `@^9`, which is none.
    NoRange,
    /// A bundle that there never is.
    Nothing,
}

/// The kinds of files in the cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kept {
    Blob,
    Manifest,
    /// What says how old a manifest is.
    Sidecar,
    Ref,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Damage {
    /// A byte changes, in place.
    Flip,
    Truncate,
    Extend,
    Remove,
    /// Another file takes its place.
    Replace,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Nobody listens.
    Down,
    /// Everything is 404.
    Missing,
    /// Everything is 401.
    Refused,
    /// Answers are no JSON.
    Garbage,
    /// Contents are other bytes.
    WrongBytes,
    /// All is well, and takes its time.
    Delay,
    /// Nothing is answered.
    Stall,
    /// Contents come a byte a second.
    Trickle,
    /// Answers break off.
    Truncate,
}

/// How many versions there may be of a bundle.
pub(crate) const MOST_VERSIONS: usize = 10;

fn name() -> impl Strategy<Value = Name> {
    prop_oneof![
        4 => Just(Name::Bare),
        1 => Just(Name::Latest),
        6 => (0..MOST_VERSIONS).prop_map(Name::Version),
        2 => (0..2_usize).prop_map(Name::Tag),
        2 => Just(Name::Range),
        1 => Just(Name::NoRange),
        1 => Just(Name::Nothing),
    ]
}

fn place() -> impl Strategy<Value = Place> {
    let path = prop_oneof![1 => Just(None), 4 => (0..crate::world::PATHS.len()).prop_map(Some)];
    (0..crate::world::BUNDLES.len(), name(), path).prop_map(|(bundle, name, path)| Place {
        bundle,
        name,
        path,
    })
}

fn question() -> impl Strategy<Value = Question> {
    prop_oneof![
        4 => Just(Question::Stat),
        8 => any::<bool>().prop_map(|forget| Question::Read { forget }),
        3 => Just(Question::List),
        3 => Just(Question::Readlink),
        1 => Just(Question::ListNamespace),
        2 => prop_oneof![
            Just(Attribute::Digest),
            Just(Attribute::Version),
            Just(Attribute::State),
            Just(Attribute::Unknown),
            Just(Attribute::Foreign),
        ]
        .prop_map(Question::Xattr),
        2 => prop_oneof![
            Just(Write::Open),
            Just(Write::Create),
            Just(Write::Remove),
            Just(Write::MakeDirectory),
            Just(Write::Rename),
            Just(Write::Mode),
            Just(Write::Truncate),
            Just(Write::Symlink),
            Just(Write::SetXattr),
        ]
        .prop_map(Question::Write),
    ]
}

/// Anything that can happen; mostly somebody asks.
pub(crate) fn step() -> impl Strategy<Value = Step> {
    let bundle = 0..crate::world::BUNDLES.len();
    let version = 0..MOST_VERSIONS;
    let damage = prop_oneof![
        Just(Damage::Flip),
        Just(Damage::Truncate),
        Just(Damage::Extend),
        Just(Damage::Remove),
        Just(Damage::Replace),
    ];
    let kept = prop_oneof![
        5 => Just(Kept::Blob),
        2 => Just(Kept::Manifest),
        1 => Just(Kept::Sidecar),
        2 => Just(Kept::Ref),
    ];
    // Those in which somebody waits are rarer, or most of the time would be theirs.
    let fault = prop_oneof![
        3 => Just(Fault::Missing),
        3 => Just(Fault::Refused),
        3 => Just(Fault::Garbage),
        4 => Just(Fault::WrongBytes),
        2 => Just(Fault::Delay),
        1 => Just(Fault::Down),
        1 => Just(Fault::Stall),
        1 => Just(Fault::Trickle),
        1 => Just(Fault::Truncate),
    ];
    prop_oneof![
        160 => (question(), place()).prop_map(|(question, place)| Step::Ask(question, place)),
        6 => (bundle.clone(), any::<u8>())
            .prop_map(|(bundle, files)| Step::Publish { bundle, files }),
        2 => (bundle.clone(), version.clone())
            .prop_map(|(bundle, version)| Step::Yank { bundle, version }),
        2 => (bundle.clone(), version.clone())
            .prop_map(|(bundle, version)| Step::Unyank { bundle, version }),
        4 => (bundle, 0..2_usize, version)
            .prop_map(|(bundle, tag, version)| Step::Tag { bundle, tag, version }),
        12 => (kept, any::<usize>(), damage)
            .prop_map(|(what, which, how)| Step::Damage { what, which, how }),
        2 => fault.prop_map(Step::Break),
        4 => any::<bool>().prop_map(|remount| Step::Mend { remount }),
        2 => any::<bool>().prop_map(|expired| Step::Remount { expired }),
        2 => Just(Step::Kill),
        1 => Just(Step::Wipe),
    ]
}
