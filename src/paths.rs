//! Where things are on this machine, as all Musher tools agree on it.
//!
//! ```text
//!            Linux                          macOS                                  under MUSHER_HOME
//! cache      ~/.cache/musher                ~/Library/Caches/musher                cache
//! config     ~/.config/musher               ~/Library/Application Support/musher   config
//! data       ~/.local/share/musher          ~/.local/share/musher                  data
//! state      ~/.local/state/musher          ~/.local/state/musher                  state
//! runtime    $XDG_RUNTIME_DIR/musher,       $TMPDIR/musher/run                     runtime
//!            else /tmp/musher/run
//! ```
//!
//! The first that is set wins: `MUSHER_CACHE_HOME` (`…_CONFIG_HOME`, `…_DATA_HOME`, `…_STATE_HOME`,
//! `MUSHER_RUNTIME_DIR`), then `MUSHER_HOME` and its folder, then the XDG variable and `musher`
//! below it, then the table. Empty is unset. A relative path would mean another directory to every
//! process, so it is ignored, with a warning.
//!
//! On macOS the tools disagree: the table has the choice of the Go tools, which write the
//! configuration and the credentials; where the SDKs keep credentials is searched as well
//! ([`Directories::credential_roots`]).
//!
//! Nothing here touches the disk but [`ensure_private_dir`].

use std::ffi::OsString;
use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// Whose conventions apply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Os {
    /// Linux, and every other Unix that is not macOS.
    Linux,
    /// macOS.
    MacOs,
}

impl Os {
    /// The system that this program was built for.
    pub const fn current() -> Self {
        if cfg!(target_os = "macos") {
            Self::MacOs
        } else {
            Self::Linux
        }
    }
}

/// Looks an environment variable up; in tests, in a table.
pub type Env<'a> = &'a dyn Fn(&str) -> Option<OsString>;

/// The directories of this user, all absolute. None of them needs to exist.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Directories {
    /// Content shared with the other Musher tools. Nothing private belongs here.
    pub cache: PathBuf,
    /// `config.yaml`.
    pub config: PathBuf,
    /// Credentials.
    pub data: PathBuf,
    /// Logs, journals, locks.
    pub state: PathBuf,
    /// Sockets. May be in a temporary directory that others write to: see [`ensure_private_dir`].
    pub runtime: PathBuf,
    /// What was ignored, and why: to be logged once there is a log.
    pub warnings: Vec<String>,
    /// Where the SDKs keep credentials, when that is not `data`.
    other_data: Vec<PathBuf>,
}

impl Directories {
    /// The directories that the environment of this process asks for.
    ///
    /// # Errors
    ///
    /// [`Error::Config`] if there is no home directory and some directory is not named otherwise.
    pub fn from_env() -> Result<Self> {
        let env = |name: &str| std::env::var_os(name);
        // Asks the user database when HOME is not set, as in a system service.
        Self::resolve(Os::current(), &env, std::env::home_dir().as_deref())
    }

    /// The same for any system and environment.
    ///
    /// # Errors
    ///
    /// As [`Self::from_env`].
    pub fn resolve(os: Os, env: Env<'_>, home: Option<&Path>) -> Result<Self> {
        let mut lookup = Lookup {
            env,
            home: home.filter(|home| home.is_absolute()),
            warnings: Vec::new(),
        };
        let musher_home = lookup.absolute("MUSHER_HOME");
        let base = musher_home.as_deref();
        let support = "Library/Application Support";
        let (caches, configs) = match os {
            Os::Linux => (".cache", ".config"),
            Os::MacOs => ("Library/Caches", support),
        };
        let cache = lookup.directory("CACHE", base, caches)?;
        let config = lookup.directory("CONFIG", base, configs)?;
        let data = lookup.directory("DATA", base, ".local/share")?;
        let state = lookup.directory("STATE", base, ".local/state")?;
        let runtime = lookup.runtime(os, base);
        let other_data = match (os, lookup.home) {
            (Os::MacOs, Some(home)) if data == home.join(".local/share/musher") => {
                let python = home.join(support).join("musher");
                let typescript = python.join("data");
                vec![python, typescript]
            }
            _ => Vec::new(),
        };
        Ok(Self {
            cache,
            config,
            data,
            state,
            runtime,
            warnings: lookup.warnings,
            other_data,
        })
    }

    /// The configuration file shared with the Go tools.
    pub fn config_file(&self) -> PathBuf {
        self.config.join("config.yaml")
    }

    /// What this program alone keeps between runs: logs, journals, locks.
    pub fn own_state(&self) -> PathBuf {
        self.state.join("musherfs")
    }

    /// The directories that contain a `credentials` folder, first match wins.
    pub fn credential_roots(&self) -> Vec<PathBuf> {
        let mut roots = vec![self.data.clone()];
        roots.extend(self.other_data.iter().cloned());
        roots
    }
}

/// Looks variables up and collects what had to be ignored.
struct Lookup<'a> {
    env: Env<'a>,
    home: Option<&'a Path>,
    warnings: Vec<String>,
}

impl Lookup<'_> {
    /// The variable as a path; `None` when unset, empty or relative.
    fn absolute(&mut self, name: &str) -> Option<PathBuf> {
        let path = PathBuf::from((self.env)(name).filter(|value| !value.is_empty())?);
        if path.is_absolute() {
            return Some(path);
        }
        self.warnings.push(format!(
            "{name} is ignored: `{}` is not an absolute path",
            path.display()
        ));
        None
    }

    /// `kind` is the upper-case word in the variables' names, `default` a folder of the home.
    fn directory(&mut self, kind: &str, base: Option<&Path>, default: &str) -> Result<PathBuf> {
        if let Some(path) = self.absolute(&format!("MUSHER_{kind}_HOME")) {
            return Ok(path);
        }
        if let Some(base) = base {
            return Ok(base.join(kind.to_ascii_lowercase()));
        }
        if let Some(path) = self.absolute(&format!("XDG_{kind}_HOME")) {
            return Ok(path.join("musher"));
        }
        let home = self.home.ok_or_else(|| {
            Error::Config(format!(
                "there is no home directory: set HOME, MUSHER_HOME or MUSHER_{kind}_HOME to an absolute path"
            ))
        })?;
        Ok(home.join(default).join("musher"))
    }

    fn runtime(&mut self, os: Os, base: Option<&Path>) -> PathBuf {
        if let Some(path) = self.absolute("MUSHER_RUNTIME_DIR") {
            return path;
        }
        if let Some(base) = base {
            return base.join("runtime");
        }
        if os == Os::Linux
            && let Some(path) = self.absolute("XDG_RUNTIME_DIR")
        {
            return path.join("musher");
        }
        self.absolute("TMPDIR")
            .unwrap_or_else(|| "/tmp".into())
            .join("musher/run")
    }
}

/// Tells a process in the background where the relative paths in its arguments begin: it works in
/// `/`, so as to stand in nobody's way, its own mount's least of all.
pub const DIRECTORY: &str = "MUSHERFS_BACKGROUND_DIRECTORY";

/// Makes `path` absolute, without a look at the disk.
///
/// # Errors
///
/// When it is empty, or relative and there is no working directory any more.
pub fn absolute(path: &Path) -> io::Result<PathBuf> {
    absolute_in(path, std::env::var_os(DIRECTORY))
}

fn absolute_in(path: &Path, directory: Option<OsString>) -> io::Result<PathBuf> {
    match directory {
        Some(directory) if !path.as_os_str().is_empty() => {
            std::path::absolute(Path::new(&directory).join(path))
        }
        _ => std::path::absolute(path),
    }
}

/// Creates `path` and its missing parents with mode 0700, and makes sure that nobody else could
/// replace what will be put there.
///
/// Matters for the runtime directory, which may be below `/tmp`: somebody else may have been there
/// first.
///
/// # Errors
///
/// [`Error::Io`] if it cannot be created, is a symbolic link, belongs to another user, or others
/// may write to it. The same goes for all directories above it, except that root or a sticky bit
/// makes those safe, and that whoever is in the user's own group may write to them.
pub fn ensure_private_dir(path: &Path) -> Result<()> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(|error| Error::io(path, error))?;
    let me = rustix::process::geteuid().as_raw();
    let refuse = |path: &Path, why: &str| {
        let error = io::Error::new(io::ErrorKind::PermissionDenied, why);
        Err(Error::io(path, error))
    };
    let found = fs::symlink_metadata(path).map_err(|error| Error::io(path, error))?;
    if !found.is_dir() {
        return refuse(path, "it is not a directory");
    }
    if found.uid() != me {
        return refuse(path, "it belongs to another user");
    }
    if found.permissions().mode() & 0o022 != 0 {
        return refuse(path, "others may write to it");
    }
    // A group of one's own has one's number.
    let group = Some(rustix::process::getegid().as_raw()).filter(|group| *group == me);
    // Whoever owns that could replace anything; in a user namespace the owner has another number.
    let outermost = fs::symlink_metadata("/").map_err(|error| Error::io("/", error))?;
    let outermost = outermost.uid();
    // Whoever may rename one of them may put another in its place. As they are named, and as they are
    // where links in the names lead.
    let real = fs::canonicalize(path).map_err(|error| Error::io(path, error))?;
    for above in path.ancestors().chain(real.ancestors()).skip(1) {
        if above == real || above.as_os_str().is_empty() {
            continue;
        }
        let found = fs::symlink_metadata(above).map_err(|error| Error::io(above, error))?;
        // A link's owner may point it elsewhere later.
        if ![0, me, outermost].contains(&found.uid()) {
            return refuse(above, "it belongs to another user");
        }
        let mode = found.permissions().mode();
        let is_sticky = mode & 0o1000 != 0;
        let to_strangers = if Some(found.gid()) == group {
            0o002
        } else {
            0o022
        };
        if !found.is_symlink() && mode & to_strangers != 0 && !is_sticky {
            return refuse(above, "others may write to it");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolve(os: Os, variables: &[(&str, &str)]) -> Directories {
        let env = |name: &str| {
            let found = variables.iter().find(|(key, _)| *key == name);
            found.map(|(_, value)| OsString::from(value))
        };
        Directories::resolve(os, &env, Some(Path::new("/home/ada"))).unwrap()
    }

    fn all(directories: &Directories) -> [&str; 5] {
        [
            &directories.cache,
            &directories.config,
            &directories.data,
            &directories.state,
            &directories.runtime,
        ]
        .map(|path| path.to_str().unwrap())
    }

    #[test]
    fn relative_paths_begin_where_the_asker_was() {
        let there = Some("/srv/x".into());
        let absolute = |path: &str| absolute_in(Path::new(path), there.clone());
        assert_eq!(absolute("a/b").unwrap(), Path::new("/srv/x/a/b"));
        assert_eq!(absolute(".").unwrap(), Path::new("/srv/x"));
        assert_eq!(absolute("/a").unwrap(), Path::new("/a"));
        assert!(absolute("").is_err());
        assert!(absolute_in(Path::new("a"), None).unwrap().ends_with("a"));
    }

    #[test]
    fn linux_defaults_are_those_of_the_other_tools() {
        assert_eq!(
            all(&resolve(Os::Linux, &[])),
            [
                "/home/ada/.cache/musher",
                "/home/ada/.config/musher",
                "/home/ada/.local/share/musher",
                "/home/ada/.local/state/musher",
                "/tmp/musher/run",
            ]
        );
    }

    #[test]
    fn macos_defaults_are_those_of_the_go_tools() {
        let directories = resolve(Os::MacOs, &[("TMPDIR", "/var/folders/x/T/")]);
        assert_eq!(
            all(&directories),
            [
                "/home/ada/Library/Caches/musher",
                "/home/ada/Library/Application Support/musher",
                "/home/ada/.local/share/musher",
                "/home/ada/.local/state/musher",
                "/var/folders/x/T/musher/run",
            ]
        );
        assert_eq!(
            directories.credential_roots(),
            [
                "/home/ada/.local/share/musher",
                "/home/ada/Library/Application Support/musher",
                "/home/ada/Library/Application Support/musher/data",
            ]
            .map(PathBuf::from)
        );
    }

    #[test]
    fn a_branded_variable_wins_over_musher_home_which_wins_over_xdg() {
        let mut variables = vec![
            ("XDG_CACHE_HOME", "/xdg/cache"),
            ("XDG_CONFIG_HOME", "/xdg/config"),
            ("XDG_DATA_HOME", "/xdg/data"),
            ("XDG_STATE_HOME", "/xdg/state"),
            ("XDG_RUNTIME_DIR", "/run/user/1000"),
        ];
        for os in [Os::Linux, Os::MacOs] {
            let directories = resolve(os, &variables);
            let runtime = match os {
                Os::Linux => "/run/user/1000/musher",
                Os::MacOs => "/tmp/musher/run",
            };
            assert_eq!(
                all(&directories),
                [
                    "/xdg/cache/musher",
                    "/xdg/config/musher",
                    "/xdg/data/musher",
                    "/xdg/state/musher",
                    runtime,
                ]
            );
        }
        variables.push(("MUSHER_HOME", "/m"));
        assert_eq!(
            all(&resolve(Os::Linux, &variables)),
            ["/m/cache", "/m/config", "/m/data", "/m/state", "/m/runtime"]
        );
        variables.extend([
            ("MUSHER_CACHE_HOME", "/1"),
            ("MUSHER_CONFIG_HOME", "/2"),
            ("MUSHER_DATA_HOME", "/3"),
            ("MUSHER_STATE_HOME", "/4"),
            ("MUSHER_RUNTIME_DIR", "/5"),
        ]);
        let directories = resolve(Os::MacOs, &variables);
        assert_eq!(all(&directories), ["/1", "/2", "/3", "/4", "/5"]);
        assert_eq!(directories.credential_roots(), [PathBuf::from("/3")]);
    }

    #[test]
    fn an_empty_variable_is_unset_and_a_relative_one_is_ignored_with_a_warning() {
        let directories = resolve(
            Os::Linux,
            &[
                ("MUSHER_HOME", ""),
                ("MUSHER_CACHE_HOME", "cache"),
                ("XDG_STATE_HOME", "./state"),
            ],
        );
        assert_eq!(all(&directories), all(&resolve(Os::Linux, &[])));
        assert_eq!(directories.warnings.len(), 2, "{:?}", directories.warnings);
        assert!(directories.warnings[0].starts_with("MUSHER_CACHE_HOME is ignored"));
    }

    #[test]
    fn without_a_home_the_directories_must_be_named() {
        let nothing = |_: &str| None;
        let error = Directories::resolve(Os::Linux, &nothing, None).unwrap_err();
        assert!(error.to_string().contains("MUSHER_HOME"), "{error}");
        let named = |name: &str| (name == "MUSHER_HOME").then(|| OsString::from("/m"));
        assert!(Directories::resolve(Os::Linux, &named, None).is_ok());
    }

    #[test]
    fn a_private_directory_is_private_and_a_foreign_one_is_refused() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("musher/run");
        ensure_private_dir(&path).unwrap();
        ensure_private_dir(&path).unwrap();
        for made in [&path, &scratch.path().join("musher")] {
            let mode = fs::metadata(made).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o700);
        }

        fs::set_permissions(&path, fs::Permissions::from_mode(0o770)).unwrap();
        assert!(ensure_private_dir(&path).is_err());
        fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).unwrap();

        let link = scratch.path().join("link");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        assert!(ensure_private_dir(&link).is_err());
    }

    #[test]
    fn a_private_directory_is_refused_below_one_that_others_may_rename() {
        let scratch = tempfile::tempdir().unwrap();
        let above = scratch.path().join("a");
        let path = above.join("b/c/d");
        ensure_private_dir(&path).unwrap();
        let has_own_group =
            rustix::process::getegid().as_raw() == fs::metadata(&path).unwrap().uid();
        for (mode, is_safe) in [(0o777, false), (0o1777, true), (0o775, has_own_group)] {
            fs::set_permissions(&above, fs::Permissions::from_mode(mode)).unwrap();
            assert_eq!(ensure_private_dir(&path).is_ok(), is_safe, "{mode:o}");
        }
        if rustix::process::geteuid().is_root() {
            std::os::unix::fs::chown(&above, Some(65534), None).unwrap();
            assert!(ensure_private_dir(&path).is_err());
            // Also behind a link that is ours.
            let link = scratch.path().join("link");
            std::os::unix::fs::symlink(&above, &link).unwrap();
            assert!(ensure_private_dir(&link.join("b/c/d")).is_err());
        }
    }
}
