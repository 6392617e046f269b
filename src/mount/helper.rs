//! The calling convention of mount(8): `mount.musherfs SOURCE DIR [-sfnv] [-o options]`.
//!
//! mount(8) and `/etc/fstab` reach us in two ways: as a helper of that name, or through
//! `mount.fuse3`, which starts `musherfs SOURCE DIR -o options` without a subcommand. Both add
//! options of their own (`rw`, `dev`, `suid`). What changes nothing for a read-only mount is
//! accepted and ignored; everything else that is unknown is refused, so that a misspelt option
//! does not silently do nothing.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use super::MountOptions;

/// Our own options in `-o`, spelt as on the command line but with `_`, and whether they take a
/// value.
pub const SETTINGS: &[(&str, bool)] = &[
    ("api_key_file", true),
    ("api_url", true),
    ("ca_file", true),
    ("cache_max_size", true),
    ("content_timeout", true),
    ("deny_yanked", false),
    ("insecure_http", false),
    ("local_packs", false),
    ("locked", true),
    ("marker", false),
    ("metadata_timeout", true),
    ("metrics", true),
    ("mirror", true),
    ("namespace", true),
    ("oci", true),
    ("oci_password_file", true),
    ("oci_user", true),
    ("offline", false),
    ("readahead", true),
    ("respect_removal", false),
    ("threads", true),
    ("user_xattr", false),
];

/// Options that mean something to mount(8) or systemd, or nothing to a read-only filesystem.
const IGNORED: &[&str] = &[
    "_netdev",
    "async",
    "atime",
    "auto",
    "default_permissions",
    "defaults",
    "dev",
    "diratime",
    "dirsync",
    "exec",
    "group",
    "lazytime",
    "loud",
    "noatime",
    "noauto",
    "nodev",
    "nodiratime",
    "nofail",
    "nogroup",
    "nolazytime",
    "noowner",
    "norelatime",
    "nostrictatime",
    "nosuid",
    "nouser",
    "nousers",
    "owner",
    "relatime",
    "ro",
    "rw",
    "silent",
    "strictatime",
    "suid",
    "sync",
    "user",
    "users",
];

/// The same, with a value.
const IGNORED_PREFIXES: &[&str] = &["x-", "X-", "comment=", "helper=", "uhelper=", "user="];

const LABELS: &[&str] = &["context", "defcontext", "fscontext", "rootcontext"];

/// One of our own settings: its name, and its value where [`SETTINGS`] says so.
pub type Setting = (String, Option<String>);

/// A call by mount(8).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct HelperCall {
    /// The registry's URL, if the source is one.
    pub api_url: Option<String>,
    /// Where to mount.
    pub dir: PathBuf,
    /// What concerns the mount itself; its `source` is what was given.
    pub options: MountOptions,
    /// Our own options in the order given, with a value where [`SETTINGS`] says so.
    pub settings: Vec<Setting>,
    /// `-v`.
    pub verbose: bool,
    /// `-f`: check everything, mount nothing.
    pub fake: bool,
}

/// Reads a command line (with the program's name first) that mount(8) may have made; `None` if it
/// did not: then it is for people, and has a subcommand.
///
/// The inner error says what is wrong with it, in a sentence for the user; exit with 1
/// ("incorrect invocation") as mount(8) expects.
pub fn parse_mount_helper(args: &[OsString]) -> Option<Result<HelperCall, String>> {
    let (program, rest) = args.split_first()?;
    if is_helper(program) || has_two_positionals(rest) {
        Some(parse(rest))
    } else {
        None
    }
}

/// What a helper tells a person who asks it.
pub const USAGE: &str = "\
Usage: mount.musherfs SOURCE DIRECTORY [-sfnv] [-o OPTIONS]

For mount(8) and /etc/fstab. SOURCE is `musherfs`, or a registry's URL. `musherfs mount --help` lists
the options, which are written with `_` in -o: api_key_file=/etc/musher/key,offline";

/// Whether a person asks a helper what it is for.
pub fn asks_for_help(args: &[OsString]) -> bool {
    let [program, rest @ ..] = args else {
        return false;
    };
    is_helper(program)
        && rest
            .first()
            .is_some_and(|arg| arg == "--help" || arg == "-h")
}

fn is_helper(program: &OsStr) -> bool {
    let name = Path::new(program).file_name();
    name.is_some_and(|name| name == "mount.musherfs" || name == "mount.fuse.musherfs")
}

/// Whether it begins with SOURCE DIR, and not with a subcommand.
fn has_two_positionals(args: &[OsString]) -> bool {
    let [source, dir, ..] = args else {
        return false;
    };
    source.to_str().is_some_and(is_source) && !dir.as_encoded_bytes().starts_with(b"-")
}

fn is_source(text: &str) -> bool {
    text == "musherfs" || text == "none" || is_url(text)
}

fn is_url(text: &str) -> bool {
    text.starts_with("https://") || text.starts_with("http://")
}

fn parse(args: &[OsString]) -> Result<HelperCall, String> {
    let mut positionals = Vec::new();
    let mut lists = Vec::new();
    let (mut verbose, mut fake, mut sloppy) = (false, false, false);
    let mut args = args.iter();
    let mut only_positionals = false;
    while let Some(arg) = args.next() {
        let flags = match arg.to_str() {
            _ if only_positionals => None,
            Some("--") => {
                only_positionals = true;
                continue;
            }
            Some(text) => text.strip_prefix('-').filter(|flags| !flags.is_empty()),
            None => None,
        };
        let Some(flags) = flags else {
            positionals.push(arg);
            continue;
        };
        for (at, flag) in flags.char_indices() {
            let rest = &flags[at + flag.len_utf8()..];
            match flag {
                'v' => verbose = true,
                'f' => fake = true,
                's' => sloppy = true,
                'n' => {}
                'o' | 't' => {
                    let value = if rest.is_empty() {
                        args.next().map(OsString::as_os_str)
                    } else {
                        Some(OsStr::new(rest))
                    };
                    let value = value
                        .and_then(OsStr::to_str)
                        .ok_or_else(|| format!("-{flag} needs a value"))?;
                    if flag == 'o' {
                        lists.push(value.to_owned());
                    } else if !matches!(value, "musherfs" | "fuse.musherfs") {
                        return Err(format!("cannot mount a filesystem of type {value}"));
                    }
                    break;
                }
                _ => return Err(format!("unknown option -{flag}")),
            }
        }
    }
    let [source, dir] = positionals[..] else {
        return Err("expected `SOURCE DIRECTORY -o options`".to_owned());
    };
    let source = source
        .to_str()
        .filter(|text| is_source(text))
        .ok_or_else(|| {
            format!(
                "the source {source:?} must be `musherfs`, `none`, or a registry's URL (https://…)"
            )
        })?;

    let mut call = HelperCall {
        api_url: is_url(source).then(|| source.to_owned()),
        dir: PathBuf::from(dir),
        options: MountOptions::default(),
        settings: Vec::new(),
        verbose,
        fake,
    };
    if is_url(source) {
        call.options.source = source.to_owned();
    }
    for option in lists.iter().flat_map(|list| split(list)) {
        match take(&option, &mut call) {
            Err(_) if sloppy && option != "remount" => {}
            result => result?,
        }
    }
    Ok(call)
}

/// Reads option strings as they follow `-o`, in fstab and on the command line of `musherfs mount`:
/// what concerns the mount itself, and our own settings in the order given.
///
/// # Errors
///
/// Says what is wrong, in a sentence for the user.
pub fn parse_options(lists: &[String]) -> Result<(MountOptions, Vec<Setting>), String> {
    let mut call = HelperCall::default();
    for option in lists.iter().flat_map(|list| split(list)) {
        take(&option, &mut call)?;
    }
    Ok((call.options, call.settings))
}

/// Splits at commas outside of double quotes; quotes are removed.
fn split(list: &str) -> Vec<String> {
    let mut options = vec![String::new()];
    let mut quoted = false;
    for c in list.chars() {
        match c {
            '"' => quoted = !quoted,
            ',' if !quoted => options.push(String::new()),
            _ => {
                if let Some(last) = options.last_mut() {
                    last.push(c);
                }
            }
        }
    }
    options.retain(|option| !option.is_empty());
    options
}

fn take(option: &str, call: &mut HelperCall) -> Result<(), String> {
    let (name, value) = match option.split_once('=') {
        Some((name, value)) => (name, Some(value)),
        None => (option, None),
    };
    match (name, value) {
        ("remount", None) => {
            return Err(
                "remounting is not supported: unmount, then mount with the new options".to_owned(),
            );
        }
        ("allow_other", None) => call.options.allow_other = true,
        ("noexec", None) => call.options.noexec = true,
        ("exec", None) => call.options.noexec = false,
        (label, Some(value)) if LABELS.contains(&label) => {
            if value.is_empty() || value.contains('"') {
                return Err(format!("the value of {label} is not a security label"));
            }
            call.options
                .labels
                .push((label.to_owned(), value.to_owned()));
        }
        _ => {
            let spelt = name.replace('-', "_");
            if let Some((name, takes_value)) = SETTINGS.iter().find(|(known, _)| *known == spelt) {
                return match (takes_value, value) {
                    (true, None | Some("")) => {
                        Err(format!("the mount option {name} needs a value"))
                    }
                    (false, Some(_)) => Err(format!("the mount option {name} takes no value")),
                    _ => {
                        let value = value.map(str::to_owned);
                        call.settings.push(((*name).to_owned(), value));
                        Ok(())
                    }
                };
            }
            let ignored = IGNORED.contains(&option)
                || IGNORED_PREFIXES
                    .iter()
                    .any(|prefix| option.starts_with(prefix));
            if !ignored {
                return Err(format!("unknown mount option {name}"));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(args: &[&str]) -> Option<Result<HelperCall, String>> {
        let args: Vec<OsString> = args.iter().map(OsString::from).collect();
        parse_mount_helper(&args)
    }

    fn good(args: &[&str]) -> HelperCall {
        call(args).unwrap().unwrap()
    }

    fn bad(args: &[&str]) -> String {
        call(args).unwrap().unwrap_err()
    }

    #[test]
    fn whoever_asks_a_helper_for_help_is_told_and_the_program_itself_is_left_alone() {
        let asks = |args: &[&str]| {
            let args: Vec<OsString> = args.iter().map(OsString::from).collect();
            asks_for_help(&args)
        };
        assert!(asks(&["/sbin/mount.musherfs", "--help"]));
        assert!(asks(&["mount.fuse.musherfs", "-h"]));
        assert!(!asks(&["mount.musherfs", "none", "/m", "-h"]));
        assert!(!asks(&["musherfs", "--help"]));
    }

    #[test]
    fn a_mount_of_fstab_can_be_limited_and_locked() {
        let call = good(&[
            "mount.musherfs",
            "none",
            "/m",
            "-o",
            "cache_max_size=2g,locked=/l",
        ]);
        let names: Vec<&str> = call
            .settings
            .iter()
            .map(|(name, _)| name.as_str())
            .collect();
        assert_eq!(names, ["cache_max_size", "locked"]);
    }

    #[test]
    fn commands_of_people_are_left_alone() {
        for args in [
            &["musherfs"][..],
            &["musherfs", "mount"],
            &["musherfs", "mount", "/mnt/musher", "--foreground"],
            &["musherfs", "resolve", "acme/code-review"],
            &["/usr/bin/musherfs", "musherfs"],
            &["musherfs", "none", "--help"],
        ] {
            assert_eq!(call(args), None, "{args:?}");
        }
        assert_eq!(parse_mount_helper(&[]), None);
    }

    #[test]
    fn what_mount_8_adds_is_ignored() {
        let call = good(&[
            "musherfs",
            "musherfs",
            "/mnt/musher",
            "-o",
            "rw,dev,suid,_netdev,nofail,noauto,x-systemd.automount,X-mount.mkdir,comment=a=b,user=joe,noatime,defaults",
        ]);
        assert_eq!(call.api_url, None);
        assert_eq!(call.dir, Path::new("/mnt/musher"));
        assert_eq!(call.options, MountOptions::default());
        assert!(call.settings.is_empty());
    }

    #[test]
    fn the_source_may_be_a_registry() {
        let call = good(&["musherfs", "https://registry.example:8443/x", "/mnt/a"]);
        assert_eq!(
            call.api_url.as_deref(),
            Some("https://registry.example:8443/x")
        );
        assert_eq!(call.options.source, "https://registry.example:8443/x");
        assert!(bad(&["mount.musherfs", "registry.example", "/mnt/a"]).contains("registry's URL"));
    }

    #[test]
    fn our_own_options_are_handed_on_in_order() {
        let call = good(&[
            "/sbin/mount.fuse.musherfs",
            "none",
            "/mnt/a",
            "-nv",
            "-ooffline,namespace=acme,namespace=core",
            "-o",
            "user_xattr,allow_other,noexec,api_url=https://a/?b=c",
            "-t",
            "fuse.musherfs",
        ]);
        let settings: Vec<_> = call
            .settings
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_deref()))
            .collect();
        assert_eq!(
            settings,
            [
                ("offline", None),
                ("namespace", Some("acme")),
                ("namespace", Some("core")),
                ("user_xattr", None),
                ("api_url", Some("https://a/?b=c")),
            ]
        );
        assert!(call.options.allow_other && call.options.noexec && call.verbose && !call.fake);
    }

    #[test]
    fn a_quoted_label_keeps_its_commas() {
        let call = good(&[
            "musherfs",
            "musherfs",
            "/mnt/a",
            "-o",
            "context=\"system_u:object_r:container_file_t:s0:c1,c2\",ro",
        ]);
        assert_eq!(
            call.options.labels,
            [(
                "context".to_owned(),
                "system_u:object_r:container_file_t:s0:c1,c2".to_owned()
            )]
        );
    }

    #[test]
    fn what_would_do_nothing_is_refused() {
        let with = |options: &str| bad(&["musherfs", "musherfs", "/mnt/a", "-o", options]);
        assert!(with("ro,remount").contains("unmount, then mount"));
        assert_eq!(with("offlin"), "unknown mount option offlin");
        assert_eq!(with("uid=0"), "unknown mount option uid");
        assert!(with("offline=1").contains("takes no value"));
        assert!(with("api_url").contains("needs a value"));
        assert!(with("context=").contains("not a security label"));
        assert!(bad(&["mount.musherfs", "musherfs"]).contains("SOURCE DIRECTORY"));
        assert!(bad(&["mount.musherfs", "musherfs", "/a", "-o"]).contains("needs a value"));
        assert!(bad(&["mount.musherfs", "musherfs", "/a", "-N", "1"]).contains("-N"));
        assert!(bad(&["mount.musherfs", "musherfs", "/a", "-t", "nfs"]).contains("nfs"));
    }

    #[test]
    fn sloppy_calls_may_have_unknown_options_but_no_remount() {
        let call = good(&[
            "mount.musherfs",
            "none",
            "/a",
            "-sf",
            "-o",
            "new_thing,offline",
        ]);
        assert_eq!(call.settings, [("offline".to_owned(), None)]);
        assert!(call.fake);
        assert!(bad(&["mount.musherfs", "none", "/a", "-s", "-o", "remount"]).contains("remount"));
    }
}
