//! Every setting of a mount, and who set it.
//!
//! For each setting the first of these that has a value wins: the command line ([`Overrides`]), the
//! environment, `config.yaml`, the default. Empty is unset. A value that cannot be used is an error
//! that names the place it stands in, never a silent default; so is an unknown name below `mount:`
//! in the file, because an option that does nothing is worse than none.
//!
//! ```yaml
//! api:     { url: https://api.musher.dev }       # these are shared with the other Musher tools,
//! network: { ca_cert_file: corporate.pem }       # whose other settings are left alone
//! oci:     { registry_url: ghcr.io }
//! mount:                                         # these are this program's own
//!   namespaces: [acme, tools]
//!   readahead: 4MiB
//!   metadata_timeout: 10s
//!   mirrors: [{ for: oci, url: "https://cache.example:5000", resolve: false }]
//! ```
//!
//! Relative paths in the file start from the file's directory, others from the working directory.
//! Keys are not settings: see `credentials`.

mod file;
pub mod service;
pub mod value;

use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use url::Url;

use crate::error::{Error, Result};
use crate::paths::{self, Directories, Env};
use crate::reference::Namespace;
use file::File;

/// The hosted registry.
pub const DEFAULT_API_URL: &str = "https://api.musher.dev";
/// How many bytes of a version are fetched ahead of its readers.
pub const DEFAULT_READAHEAD: u64 = 4 << 20;
/// How long a question about names, versions and lists of files may take.
pub const DEFAULT_METADATA_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a file's content may take.
pub const DEFAULT_CONTENT_TIMEOUT: Duration = Duration::from_secs(60);
/// How many threads may answer the kernel: with more, they only wait for each other.
pub const THREADS: std::ops::RangeInclusive<usize> = 2..=4;

/// What processes that live long are started with, unless the user has set it.
///
/// glibc's allocator keeps up to eight arenas a processor, each as large as it ever was: a daemon that
/// refreshes a few hundred names now and then grew by 300 KiB a minute for hours, without a leak. With
/// two it levels out. Only a variable says so without unsafe code, and only to a new process.
///
/// Another allocator would do as well, but for this: the kernel answers EIO to whoever asked when it
/// cannot copy their request into a process that is being killed, and that happens where memory has
/// never been touched. glibc writes its own header into the first page of a large buffer such as
/// fuser's, which jemalloc does not: of 282 `kill -9` under load one was seen by a caller.
pub const ARENAS: (&str, &str) = ("MALLOC_ARENA_MAX", "2");

/// Whether [`ARENAS`] is set, by whomever.
pub fn has_arenas() -> bool {
    std::env::var_os(ARENAS.0).is_some()
}

/// The arguments of this process, its own name first.
pub fn command_line() -> Vec<OsString> {
    std::env::args_os().collect()
}

/// What `RUST_LOG` asks for: `None` when it is unset or empty.
pub fn rust_log() -> Option<String> {
    let text = std::env::var_os("RUST_LOG")?;
    Some(text.to_string_lossy().into_owned()).filter(|text| !text.trim().is_empty())
}

/// The proxy variables that are set, without user names and passwords in them.
pub fn proxies() -> Vec<(&'static str, String)> {
    const NAMES: [&str; 8] = [
        "https_proxy",
        "HTTPS_PROXY",
        "http_proxy",
        "HTTP_PROXY",
        "all_proxy",
        "ALL_PROXY",
        "no_proxy",
        "NO_PROXY",
    ];
    let set = NAMES.iter().filter_map(|name| {
        let value = std::env::var_os(name)?.to_string_lossy().into_owned();
        let shown = match value.rsplit_once('@') {
            Some((_, host)) => format!("…@{host}"),
            None => value.clone(),
        };
        (!value.is_empty()).then_some((*name, shown))
    });
    set.collect()
}

/// Who set a setting.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// Nobody.
    Default,
    /// This name in the configuration file.
    File(&'static str),
    /// This environment variable.
    Environment(&'static str),
    /// This command line option.
    Flag(&'static str),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File(name) => write!(f, "config.yaml, {name}"),
            Self::Environment(name) | Self::Flag(name) => f.write_str(name),
        }
    }
}

/// A value and who set it. Reads like the value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setting<T> {
    /// The value.
    pub value: T,
    /// Who set it.
    pub origin: Origin,
}

impl<T> std::ops::Deref for Setting<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}

/// What a setting is called in each of the places.
struct Names {
    flag: &'static str,
    variable: &'static str,
    file: &'static str,
}

const fn names(flag: &'static str, variable: &'static str, file: &'static str) -> Names {
    Names {
        flag,
        variable,
        file,
    }
}

const API_URL: Names = names("--api-url", "MUSHER_API_URL", "api.url");
const CA_FILE: Names = names(
    "--ca-file",
    "MUSHER_NETWORK_CA_CERT_FILE",
    "network.ca_cert_file",
);
const OCI_REGISTRY_URL: Names = names("--oci", "MUSHER_OCI_REGISTRY_URL", "oci.registry_url");
const OCI_USER: Names = names("--oci-user", "MUSHERFS_OCI_USER", "mount.oci_user");
const OCI_PASSWORD_FILE: Names = names(
    "--oci-password-file",
    "MUSHERFS_OCI_PASSWORD_FILE",
    "mount.oci_password_file",
);
const MIRRORS: Names = names("--mirror", "MUSHERFS_MIRRORS", "mount.mirrors");
const API_KEY_FILE: Names = names(
    "--api-key-file",
    "MUSHERFS_API_KEY_FILE",
    "mount.api_key_file",
);
const INSECURE_HTTP: Names = names(
    "--insecure-http",
    "MUSHERFS_INSECURE_HTTP",
    "mount.insecure_http",
);
const OFFLINE: Names = names("--offline", "MUSHERFS_OFFLINE", "mount.offline");
const NAMESPACES: Names = names("--namespace", "MUSHERFS_NAMESPACES", "mount.namespaces");
const DENY_YANKED: Names = names("--deny-yanked", "MUSHERFS_DENY_YANKED", "mount.deny_yanked");
const RESPECT_REMOVAL: Names = names(
    "--respect-removal",
    "MUSHERFS_RESPECT_REMOVAL",
    "mount.respect_removal",
);
const LOCAL_PACKS: Names = names("--local-packs", "MUSHERFS_LOCAL_PACKS", "mount.local_packs");
const USER_XATTR: Names = names("--user-xattr", "MUSHERFS_USER_XATTR", "mount.user_xattr");
const ALLOW_OTHER: Names = names("--allow-other", "MUSHERFS_ALLOW_OTHER", "mount.allow_other");
const READAHEAD: Names = names("--readahead", "MUSHERFS_READAHEAD", "mount.readahead");
const MARKER: Names = names("--marker", "MUSHERFS_MARKER", "mount.marker");
const METADATA_TIMEOUT: Names = names(
    "--metadata-timeout",
    "MUSHERFS_METADATA_TIMEOUT",
    "mount.metadata_timeout",
);
const CONTENT_TIMEOUT: Names = names(
    "--content-timeout",
    "MUSHERFS_CONTENT_TIMEOUT",
    "mount.content_timeout",
);
const CACHE_MAX_SIZE: Names = names(
    "--cache-max-size",
    "MUSHERFS_CACHE_MAX_SIZE",
    "mount.cache_max_size",
);
const METRICS: Names = names("--metrics", "MUSHERFS_METRICS", "mount.metrics");
const LOCKED: Names = names("--locked", "MUSHERFS_LOCKED", "mount.locked");
const THREADS_NAMES: Names = names("--threads", "MUSHERFS_THREADS", "mount.threads");

/// The settings that the configuration file may have below `mount:`.
const MOUNT_NAMES: [&Names; 20] = [
    &ALLOW_OTHER,
    &API_KEY_FILE,
    &CACHE_MAX_SIZE,
    &CONTENT_TIMEOUT,
    &DENY_YANKED,
    &INSECURE_HTTP,
    &LOCAL_PACKS,
    &LOCKED,
    &MARKER,
    &METADATA_TIMEOUT,
    &METRICS,
    &MIRRORS,
    &NAMESPACES,
    &OCI_PASSWORD_FILE,
    &OCI_USER,
    &OFFLINE,
    &READAHEAD,
    &RESPECT_REMOVAL,
    &THREADS_NAMES,
    &USER_XATTR,
];

/// What each setting is called: in the file, in the environment, on the command line.
pub fn names_of_settings() -> impl Iterator<Item = (&'static str, &'static str, &'static str)> {
    [&API_URL, &CA_FILE, &OCI_REGISTRY_URL]
        .into_iter()
        .chain(MOUNT_NAMES)
        .map(|names| (names.file, names.variable, names.flag))
}

/// What the command line says; `None` (or no namespaces) is nothing. `Some(false)` is a value, and
/// wins over the environment and the file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[allow(missing_docs)] // The names are those of Config.
pub struct Overrides {
    pub api_url: Option<Url>,
    pub ca_file: Option<PathBuf>,
    pub oci_registry_url: Option<Url>,
    pub oci_user: Option<String>,
    pub oci_password_file: Option<PathBuf>,
    pub mirrors: Vec<value::Mirror>,
    pub api_key_file: Option<PathBuf>,
    pub insecure_http: Option<bool>,
    pub offline: Option<bool>,
    pub namespaces: Vec<Namespace>,
    pub deny_yanked: Option<bool>,
    pub respect_removal: Option<bool>,
    pub local_packs: Option<bool>,
    pub user_xattr: Option<bool>,
    pub allow_other: Option<bool>,
    pub readahead: Option<u64>,
    pub metadata_timeout: Option<Duration>,
    pub content_timeout: Option<Duration>,
    pub threads: Option<usize>,
    pub cache_max_size: Option<u64>,
    pub locked: Option<PathBuf>,
    pub marker: Option<bool>,
    pub metrics: Option<value::MetricsAddress>,
}

impl Overrides {
    /// Takes one mount option as it stands in `-o NAME[=VALUE]` and in fstab. `-` and `_` are the
    /// same in names; a switch without a value is on; `namespace` and `mirror` may be repeated.
    ///
    /// Returns whether there is a setting of that name.
    ///
    /// # Errors
    ///
    /// Says what is wrong with the value.
    pub fn set(&mut self, name: &str, text: Option<&str>) -> Result<bool, String> {
        let switch = || text.map_or(Ok(true), value::switch).map(Some);
        let required = || {
            text.filter(|text| !text.is_empty())
                .ok_or("a value is missing")
        };
        match name.replace('-', "_").as_str() {
            "api_url" => self.api_url = Some(value::url(required()?)?),
            "ca_file" => self.ca_file = Some(required()?.into()),
            "oci" => self.oci_registry_url = Some(value::oci(required()?)?),
            "oci_user" => self.oci_user = Some(required()?.to_owned()),
            "oci_password_file" => self.oci_password_file = Some(required()?.into()),
            "mirror" => self.mirrors.push(value::mirror(required()?)?),
            "api_key_file" => self.api_key_file = Some(required()?.into()),
            "insecure_http" => self.insecure_http = switch()?,
            "offline" => self.offline = switch()?,
            "namespace" => self.namespaces.push(value::namespace(required()?)?),
            "deny_yanked" => self.deny_yanked = switch()?,
            "respect_removal" => self.respect_removal = switch()?,
            "local_packs" => self.local_packs = switch()?,
            "user_xattr" => self.user_xattr = switch()?,
            "allow_other" => self.allow_other = switch()?,
            "readahead" => self.readahead = Some(value::size(required()?)?),
            "metadata_timeout" => self.metadata_timeout = Some(value::timeout(required()?)?),
            "content_timeout" => self.content_timeout = Some(value::timeout(required()?)?),
            "cache_max_size" => self.cache_max_size = Some(value::cache_size(required()?)?),
            "locked" => self.locked = Some(required()?.into()),
            "marker" => self.marker = switch()?,
            "metrics" => self.metrics = Some(required()?.parse()?),
            "threads" => self.threads = Some(value::threads(required()?)?),
            _ => return Ok(false),
        }
        Ok(true)
    }
}

/// All settings of a mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// The registry; http or https, no trailing slash below the root, no user, query or fragment.
    pub api_url: Setting<Url>,
    /// PEM certificates that are trusted in addition to the system's.
    pub ca_file: Setting<Option<PathBuf>>,
    /// The OCI registry, and in its path what stands before bundles' names.
    pub oci_registry_url: Setting<Option<Url>>,
    /// The user's name for the OCI registry.
    pub oci_user: Setting<Option<String>>,
    /// The file that has the password for the OCI registry.
    pub oci_password_file: Setting<Option<PathBuf>>,
    /// Mirrors, the first to ask first.
    pub mirrors: Setting<Vec<value::Mirror>>,
    /// The file that has the API key.
    pub api_key_file: Setting<Option<PathBuf>>,
    /// Whether http is allowed beyond this machine.
    pub insecure_http: Setting<bool>,
    /// Whether nobody is to be contacted.
    pub offline: Setting<bool>,
    /// Namespaces that the root lists even if nothing of them is cached.
    pub namespaces: Setting<Vec<Namespace>>,
    /// Whether yanked versions cannot be read even if named exactly.
    pub deny_yanked: Setting<bool>,
    /// Whether what the registry has removed is hidden although it is cached.
    pub respect_removal: Setting<bool>,
    /// Whether bundles packed on this machine win over the registry's.
    pub local_packs: Setting<bool>,
    /// Whether files have `user.musher.*` attributes.
    pub user_xattr: Setting<bool>,
    /// Whether other users may see the mount.
    pub allow_other: Setting<bool>,
    /// Bytes to fetch ahead of a version's readers; 0 is never.
    pub readahead: Setting<u64>,
    /// How long a question about names, versions and lists of files may take.
    pub metadata_timeout: Setting<Duration>,
    /// How long a file's content may take.
    pub content_timeout: Setting<Duration>,
    /// How many threads answer the kernel.
    pub threads: Setting<usize>,
    /// What the cache may take of the disk, in bytes; 0 is without a limit.
    pub cache_max_size: Setting<u64>,
    /// The lockfile that says what exists.
    pub locked: Setting<Option<PathBuf>>,
    /// Whether the directory says that nothing is mounted when nothing is.
    pub marker: Setting<bool>,
    /// Where numbers for monitoring are served.
    pub metrics: Setting<Option<value::MetricsAddress>>,
}

impl Config {
    /// Reads the environment and the configuration file.
    ///
    /// # Errors
    ///
    /// [`Error::Config`] with the place and what is wrong there.
    pub fn load(directories: &Directories, overrides: Overrides) -> Result<Self> {
        let file = File::read(&directories.config_file())?;
        Self::resolve(overrides, &|name| std::env::var_os(name), &file)
    }

    /// The settings of a mount on a machine where nobody has set anything.
    ///
    /// # Errors
    ///
    /// [`Error::Config`] if `overrides` cannot be used.
    pub fn without_surroundings(overrides: Overrides) -> Result<Self> {
        Self::resolve(overrides, &|_| None, &File::default())
    }

    fn resolve(flags: Overrides, env: Env<'_>, file: &File) -> Result<Self> {
        let from = Layers { env, file };
        let namespaces = Some(flags.namespaces).filter(|list| !list.is_empty());
        let mirrors = Some(flags.mirrors).filter(|list| !list.is_empty());
        Ok(Self {
            api_url: from.pick(&API_URL, flags.api_url, value::url, || {
                Url::parse(DEFAULT_API_URL).expect("the default is a URL")
            })?,
            ca_file: from.path(&CA_FILE, flags.ca_file)?,
            oci_registry_url: from.optional(
                &OCI_REGISTRY_URL,
                flags.oci_registry_url,
                value::oci,
            )?,
            oci_user: from.optional(&OCI_USER, flags.oci_user, |text| Ok(text.to_owned()))?,
            oci_password_file: from.path(&OCI_PASSWORD_FILE, flags.oci_password_file)?,
            mirrors: from.pick(&MIRRORS, mirrors, value::mirrors, Vec::new)?,
            api_key_file: from.path(&API_KEY_FILE, flags.api_key_file)?,
            insecure_http: from.switch(&INSECURE_HTTP, flags.insecure_http)?,
            offline: from.switch(&OFFLINE, flags.offline)?,
            namespaces: from.pick(&NAMESPACES, namespaces, value::namespaces, Vec::new)?,
            deny_yanked: from.switch(&DENY_YANKED, flags.deny_yanked)?,
            respect_removal: from.switch(&RESPECT_REMOVAL, flags.respect_removal)?,
            local_packs: from.switch(&LOCAL_PACKS, flags.local_packs)?,
            user_xattr: from.switch(&USER_XATTR, flags.user_xattr)?,
            allow_other: from.switch(&ALLOW_OTHER, flags.allow_other)?,
            readahead: from.pick(&READAHEAD, flags.readahead, value::size, || {
                DEFAULT_READAHEAD
            })?,
            metadata_timeout: from.pick(
                &METADATA_TIMEOUT,
                flags.metadata_timeout,
                value::timeout,
                || DEFAULT_METADATA_TIMEOUT,
            )?,
            content_timeout: from.pick(
                &CONTENT_TIMEOUT,
                flags.content_timeout,
                value::timeout,
                || DEFAULT_CONTENT_TIMEOUT,
            )?,
            cache_max_size: from.pick(
                &CACHE_MAX_SIZE,
                flags.cache_max_size,
                value::cache_size,
                || 0,
            )?,
            locked: from.path(&LOCKED, flags.locked)?,
            marker: from.switch(&MARKER, flags.marker)?,
            metrics: from.metrics(flags.metrics)?,
            threads: from.pick(&THREADS_NAMES, flags.threads, value::threads, || {
                let cpus = thread::available_parallelism().map_or(1, usize::from);
                cpus.clamp(*THREADS.start(), *THREADS.end())
            })?,
        })
    }
}

impl Config {
    /// Whether there is a Musher API: always, but when an OCI registry is named and no API is.
    pub fn has_api(&self) -> bool {
        self.oci_registry_url.is_none() || self.api_url.origin != Origin::Default
    }

    /// The registry that says which versions there are.
    pub fn registry(&self) -> &Url {
        match &*self.oci_registry_url {
            Some(oci) if !self.has_api() => oci,
            _ => &self.api_url,
        }
    }

    /// What the cache may take of the disk, if that is limited.
    pub fn cache_limit(&self) -> Option<u64> {
        Some(*self.cache_max_size).filter(|limit| *limit > 0)
    }

    /// The settings that somebody has set, for people: name, value, and who.
    pub fn explain(&self) -> Vec<(&'static str, String, &Origin)> {
        fn text<T: fmt::Debug>(value: &T) -> String {
            format!("{value:?}")
        }
        let path = |path: &Option<PathBuf>| {
            let path = path.as_deref().unwrap_or(Path::new(""));
            path.display().to_string()
        };
        let oci = self.oci_registry_url.as_ref().map(Url::to_string);
        let mirrors: Vec<_> = self.mirrors.iter().map(|m| m.url.to_string()).collect();
        let all = [
            ("api_url", self.api_url.to_string(), &self.api_url.origin),
            ("ca_file", path(&self.ca_file), &self.ca_file.origin),
            (
                "oci_registry_url",
                oci.unwrap_or_default(),
                &self.oci_registry_url.origin,
            ),
            (
                "oci_user",
                self.oci_user.value.clone().unwrap_or_default(),
                &self.oci_user.origin,
            ),
            (
                "oci_password_file",
                path(&self.oci_password_file),
                &self.oci_password_file.origin,
            ),
            ("mirrors", mirrors.join(","), &self.mirrors.origin),
            (
                "api_key_file",
                path(&self.api_key_file),
                &self.api_key_file.origin,
            ),
            (
                "insecure_http",
                text(&*self.insecure_http),
                &self.insecure_http.origin,
            ),
            ("offline", text(&*self.offline), &self.offline.origin),
            (
                "namespaces",
                text(&*self.namespaces),
                &self.namespaces.origin,
            ),
            (
                "deny_yanked",
                text(&*self.deny_yanked),
                &self.deny_yanked.origin,
            ),
            (
                "respect_removal",
                text(&*self.respect_removal),
                &self.respect_removal.origin,
            ),
            (
                "local_packs",
                text(&*self.local_packs),
                &self.local_packs.origin,
            ),
            (
                "user_xattr",
                text(&*self.user_xattr),
                &self.user_xattr.origin,
            ),
            (
                "allow_other",
                text(&*self.allow_other),
                &self.allow_other.origin,
            ),
            ("readahead", text(&*self.readahead), &self.readahead.origin),
            (
                "metadata_timeout",
                text(&*self.metadata_timeout),
                &self.metadata_timeout.origin,
            ),
            (
                "content_timeout",
                text(&*self.content_timeout),
                &self.content_timeout.origin,
            ),
            ("threads", text(&*self.threads), &self.threads.origin),
            (
                "cache_max_size",
                text(&*self.cache_max_size),
                &self.cache_max_size.origin,
            ),
            ("locked", path(&self.locked), &self.locked.origin),
            ("marker", text(&*self.marker), &self.marker.origin),
            (
                "metrics",
                self.metrics.as_ref().map_or_else(String::new, text),
                &self.metrics.origin,
            ),
        ];
        let set = |(_, _, origin): &(_, _, &Origin)| **origin != Origin::Default;
        all.into_iter().filter(set).collect()
    }
}

/// Where a setting that is not on the command line may come from.
struct Layers<'a> {
    env: Env<'a>,
    file: &'a File,
}

impl Layers<'_> {
    fn optional<T>(
        &self,
        names: &Names,
        flag: Option<T>,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Result<Setting<Option<T>>> {
        let setting = |value, origin| Setting { value, origin };
        if flag.is_some() {
            return Ok(setting(flag, Origin::Flag(names.flag)));
        }
        if let Some(text) = (self.env)(names.variable).filter(|text| !text.is_empty()) {
            let value = text
                .to_str()
                .ok_or_else(|| "it is not UTF-8".to_owned())
                .and_then(&parse)
                .map_err(|problem| Error::Config(format!("{}: {problem}", names.variable)))?;
            return Ok(setting(Some(value), Origin::Environment(names.variable)));
        }
        if let Some(text) = self.file.get(names.file) {
            let value = parse(text).map_err(|problem| self.file.problem(names.file, &problem))?;
            return Ok(setting(Some(value), Origin::File(names.file)));
        }
        Ok(setting(None, Origin::Default))
    }

    fn pick<T>(
        &self,
        names: &Names,
        flag: Option<T>,
        parse: impl Fn(&str) -> Result<T, String>,
        default: impl FnOnce() -> T,
    ) -> Result<Setting<T>> {
        let found = self.optional(names, flag, parse)?;
        Ok(Setting {
            value: found.value.unwrap_or_else(default),
            origin: found.origin,
        })
    }

    fn switch(&self, names: &Names, flag: Option<bool>) -> Result<Setting<bool>> {
        self.pick(names, flag, value::switch, || false)
    }

    /// Absolute, because a daemon's working directory is another one.
    fn path(&self, names: &Names, flag: Option<PathBuf>) -> Result<Setting<Option<PathBuf>>> {
        let mut setting = self.optional(names, flag, |text| Ok(PathBuf::from(text)))?;
        if let Some(path) = &mut setting.value {
            *path = self.absolute(&setting.origin, path)?;
        }
        Ok(setting)
    }

    /// As [`Layers::path`], where it may be one.
    fn metrics(
        &self,
        flag: Option<value::MetricsAddress>,
    ) -> Result<Setting<Option<value::MetricsAddress>>> {
        let mut setting = self.optional(&METRICS, flag, str::parse)?;
        if let Some(value::MetricsAddress::Unix(path)) = &mut setting.value {
            *path = self.absolute(&setting.origin, path)?;
        }
        Ok(setting)
    }

    /// What is relative in the file begins where that is.
    fn absolute(&self, origin: &Origin, path: &Path) -> Result<PathBuf> {
        let base = match origin {
            Origin::File(_) => self.file.directory(),
            _ => Path::new(""),
        };
        let joined = base.join(path);
        paths::absolute(&joined).map_err(|error| Error::io(&joined, error))
    }
}

#[cfg(test)]
mod tests;
