//! The API key: where it is found, and that it goes nowhere else.
//!
//! ```text
//! --api-key, else MUSHER_API_KEY
//! --api-key-file                                    must be usable: the user asked for it
//! <data>/credentials/<host id>/api-key              as `musher login` writes it
//! the desktop's secret service                      only with the cargo feature `keyring`
//! ```
//!
//! The first that has a key wins. A key belongs to one registry: the host is part of where it is
//! looked for, and only requests to that host may carry it. Files are read anew at every
//! [`KeyChain::lookup`], so that a rotated key is found without a restart.
//!
//! A key in a file that others can read is no secret, so such a file is not used, as in the other
//! Musher tools. Keys are never printed: `Debug` of everything here hides them.

pub mod docker;
mod file;
#[cfg(feature = "keyring")]
mod keyring;

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use url::Url;

use crate::error::{Error, Result};
use file::{KeyFile, OnProblem};

/// The variable that holds the key, in all Musher tools.
pub const KEY_VARIABLE: &str = "MUSHER_API_KEY";

/// An API key: visible ASCII, safe to put into a header. Never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct ApiKey(Arc<str>);

impl ApiKey {
    /// Takes `text` without the white space around it.
    ///
    /// # Errors
    ///
    /// [`Error::Config`] if it is empty or has anything but visible ASCII characters in it. The
    /// message does not repeat it.
    pub fn new(text: impl AsRef<str>) -> Result<Self> {
        let text = text.as_ref().trim();
        if text.is_empty() {
            return Err(Error::Config("the API key is empty".into()));
        }
        if !text.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(Error::Config(
                "the API key has spaces, control characters or other characters that no key has"
                    .into(),
            ));
        }
        Ok(Self(text.into()))
    }

    /// The key itself, for the Authorization header only.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ApiKey(…)")
    }
}

/// Where a key came from: what may be shown instead of the key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeyOrigin {
    /// Given by the code itself, as in tests.
    Fixed,
    /// `--api-key`.
    Flag,
    /// The environment variable.
    Environment,
    /// A file.
    File(PathBuf),
    /// The secret service, under this service name.
    Keyring(String),
}

impl fmt::Display for KeyOrigin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fixed => f.write_str("built in"),
            Self::Flag => f.write_str("--api-key"),
            Self::Environment => f.write_str(KEY_VARIABLE),
            Self::File(path) => path.display().fmt(f),
            Self::Keyring(service) => write!(f, "keyring, {service}"),
        }
    }
}

/// The key of `flag` or else of the environment; empty is none in both.
///
/// # Errors
///
/// [`Error::Config`] if the key cannot be one; the message says where it came from.
pub fn given_key(flag: Option<&str>) -> Result<Option<(ApiKey, KeyOrigin)>> {
    let variable = std::env::var_os(KEY_VARIABLE);
    let variable = variable.as_ref().map(|value| value.to_string_lossy());
    choose_given(flag, variable.as_deref())
}

fn choose_given(flag: Option<&str>, variable: Option<&str>) -> Result<Option<(ApiKey, KeyOrigin)>> {
    for (text, origin) in [(flag, KeyOrigin::Flag), (variable, KeyOrigin::Environment)] {
        if let Some(text) = text.filter(|text| !text.trim().is_empty()) {
            let key =
                ApiKey::new(text).map_err(|error| Error::Config(format!("{origin}: {error}")))?;
            return Ok(Some((key, origin)));
        }
    }
    Ok(None)
}

/// Where to look for the key of one registry.
///
/// The default looks nowhere and finds nothing. Clones share what they have warned about.
#[derive(Debug, Clone, Default)]
pub struct KeyChain {
    given: Option<(ApiKey, KeyOrigin)>,
    files: Vec<Arc<KeyFile>>,
    #[cfg(feature = "keyring")]
    keyring: Option<Arc<keyring::Keyring>>,
}

impl KeyChain {
    /// Looks in all places for the key of the registry at `api`.
    ///
    /// `given` is from [`given_key`], `explicit` from `--api-key-file`, `roots` are
    /// [`Directories::credential_roots`]. `host_ids` are the directory names that the Musher tools
    /// give to that registry, best first.
    ///
    /// [`Directories::credential_roots`]: crate::paths::Directories::credential_roots
    pub fn new(
        given: Option<(ApiKey, KeyOrigin)>,
        explicit: Option<PathBuf>,
        roots: &[PathBuf],
        api: &Url,
        host_ids: &[impl AsRef<str>],
    ) -> Self {
        let explicit = explicit.map(|path| Arc::new(KeyFile::new(path, OnProblem::Fail)));
        let stored = roots.iter().flat_map(|root| {
            host_ids.iter().map(|host| {
                let path = stored_path(root, host.as_ref());
                Arc::new(KeyFile::new(path, OnProblem::Ignore))
            })
        });
        #[cfg(not(feature = "keyring"))]
        let _ = api;
        Self {
            given,
            files: explicit.into_iter().chain(stored).collect(),
            #[cfg(feature = "keyring")]
            keyring: keyring::Keyring::new(api).map(Arc::new),
        }
    }

    /// Always finds `key`.
    pub fn fixed(key: ApiKey) -> Self {
        Self {
            given: Some((key, KeyOrigin::Fixed)),
            ..Self::default()
        }
    }

    /// Looks in this file only, which must have a key.
    pub fn for_file(path: PathBuf) -> Self {
        Self {
            files: vec![Arc::new(KeyFile::new(path, OnProblem::Fail))],
            ..Self::default()
        }
    }

    /// The same without a key of the environment, for a registry that is not Musher's: that key is
    /// there for all programs and not meant for just any host. One on the command line is.
    #[must_use]
    pub fn without_environment(mut self) -> Self {
        self.given
            .take_if(|(_, origin)| *origin == KeyOrigin::Environment);
        self
    }

    /// Looks the key up anew. May wait for the disk, and with the feature `keyring` for up to
    /// three seconds for the secret service: not for a thread that serves requests.
    ///
    /// # Errors
    ///
    /// [`Error::Config`] if the file of `--api-key-file` has no key, or a key that is found cannot
    /// be one.
    pub fn lookup(&self) -> Result<Option<ApiKey>> {
        Ok(self.find()?.map(|(key, _)| key))
    }

    /// Where [`Self::lookup`] would find the key at the moment.
    ///
    /// # Errors
    ///
    /// As [`Self::lookup`].
    pub fn origin(&self) -> Result<Option<KeyOrigin>> {
        Ok(self.find()?.map(|(_, origin)| origin))
    }

    /// Why files that might hold the key are not used: path and problem, never content.
    pub fn problems(&self) -> Vec<String> {
        self.files
            .iter()
            .filter_map(|file| file.problem())
            .collect()
    }

    /// Whether what the user asked for can be used: the file of `--api-key-file`, unless a key was
    /// given otherwise. Waits for no secret service.
    ///
    /// # Errors
    ///
    /// As [`Self::lookup`].
    pub fn check_named(&self) -> Result<()> {
        if self.given.is_none() {
            for file in self.files.iter().filter(|file| file.is_named()) {
                file.read()?;
            }
        }
        Ok(())
    }

    /// As [`Self::lookup`], with where the key is from.
    ///
    /// # Errors
    ///
    /// As [`Self::lookup`].
    pub fn find(&self) -> Result<Option<(ApiKey, KeyOrigin)>> {
        if let Some(given) = &self.given {
            return Ok(Some(given.clone()));
        }
        for file in &self.files {
            if let Some(key) = file.read()? {
                return Ok(Some((key, KeyOrigin::File(file.path().to_owned()))));
            }
        }
        #[cfg(feature = "keyring")]
        if let Some(keyring) = &self.keyring {
            return keyring.read();
        }
        Ok(None)
    }
}

/// Where the Musher tools keep the key of `host_id` below a data directory.
fn stored_path(root: &Path, host_id: &str) -> PathBuf {
    root.join("credentials").join(host_id).join("api-key")
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    const HOSTS: [&str; 2] = ["registry.test", "registry.test_443"];

    fn chain(
        given: Option<(ApiKey, KeyOrigin)>,
        explicit: Option<PathBuf>,
        root: &Path,
    ) -> KeyChain {
        let api = Url::parse("https://registry.test").unwrap();
        KeyChain::new(given, explicit, &[root.to_owned()], &api, &HOSTS)
    }

    fn store(path: &Path, text: &str, mode: u32) {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    fn found(chain: &KeyChain) -> Option<String> {
        let key = chain.lookup().unwrap();
        key.map(|key| key.expose().to_owned())
    }

    #[test]
    fn a_key_that_could_not_be_a_header_is_refused_and_not_repeated() {
        assert_eq!(ApiKey::new("  mush_1\r\n").unwrap().expose(), "mush_1");
        for bad in [
            "",
            " \n",
            "secret\r\nX-Evil: 1",
            "secret\0",
            "secret key",
            "sécret",
        ] {
            let error = ApiKey::new(bad).unwrap_err();
            assert!(matches!(error, Error::Config(_)), "{error:?}");
            assert!(!error.to_string().contains("cret"), "{error}");
        }
    }

    #[test]
    fn no_key_is_ever_printed() {
        let key = ApiKey::new("mush_secret").unwrap();
        let chain = KeyChain::fixed(key.clone());
        for text in [format!("{key:?}"), format!("{chain:#?}")] {
            assert!(!text.contains("secret"), "{text}");
        }
    }

    #[test]
    fn the_flag_wins_over_the_environment_which_wins_over_every_file() {
        let from = |flag, variable| {
            let given = choose_given(flag, variable).unwrap();
            given.map(|(key, origin)| (key.expose().to_owned(), origin))
        };
        let pair = |text: &str, origin| Some((text.to_owned(), origin));
        assert_eq!(from(Some("a"), Some("b")), pair("a", KeyOrigin::Flag));
        assert_eq!(from(Some(""), Some("b")), pair("b", KeyOrigin::Environment));
        assert_eq!(from(None, Some(" ")), None);
        let error = choose_given(None, Some("x\ny")).unwrap_err().to_string();
        assert!(error.starts_with("MUSHER_API_KEY: "), "{error}");

        let data = tempfile::tempdir().unwrap();
        store(&stored_path(data.path(), HOSTS[0]), "stored\n", 0o600);
        let given = choose_given(None, Some("b")).unwrap();
        let chain = chain(given, Some("/nonexistent".into()), data.path());
        assert_eq!(found(&chain).as_deref(), Some("b"));
        assert_eq!(chain.origin().unwrap(), Some(KeyOrigin::Environment));
    }

    #[test]
    fn an_explicit_file_wins_over_the_stored_one() {
        let data = tempfile::tempdir().unwrap();
        store(&stored_path(data.path(), HOSTS[0]), "stored\n", 0o600);
        let explicit = data.path().join("key");
        store(&explicit, "explicit\n", 0o400);
        let both = chain(None, Some(explicit.clone()), data.path());
        assert_eq!(found(&both).as_deref(), Some("explicit"));
        assert_eq!(both.origin().unwrap(), Some(KeyOrigin::File(explicit)));
        let stored = chain(None, None, data.path());
        assert_eq!(found(&stored).as_deref(), Some("stored"));
    }

    #[test]
    fn a_key_stored_under_another_spelling_of_the_host_is_found() {
        let data = tempfile::tempdir().unwrap();
        let chain = chain(None, None, data.path());
        assert_eq!(found(&chain), None);
        store(&stored_path(data.path(), HOSTS[1]), "python\n", 0o600);
        assert_eq!(found(&chain).as_deref(), Some("python"));
        store(&stored_path(data.path(), HOSTS[0]), "own\n", 0o600);
        assert_eq!(found(&chain).as_deref(), Some("own"));
    }

    #[test]
    fn a_rotated_key_is_found_by_the_next_lookup() {
        let data = tempfile::tempdir().unwrap();
        let path = stored_path(data.path(), HOSTS[0]);
        let chain = chain(None, None, data.path());
        store(&path, "old\n", 0o600);
        assert_eq!(found(&chain).as_deref(), Some("old"));
        store(&path, "new\n", 0o600);
        assert_eq!(found(&chain).as_deref(), Some("new"));
        fs::remove_file(&path).unwrap();
        assert_eq!(found(&chain), None);
    }

    #[test]
    fn a_stored_key_that_others_can_read_is_not_used() {
        let data = tempfile::tempdir().unwrap();
        let path = stored_path(data.path(), HOSTS[0]);
        let chain = chain(None, None, data.path());
        for (mode, used) in [
            (0o600, true),
            (0o400, true),
            (0o700, true),
            (0o640, false),
            (0o604, false),
            (0o660, false),
            (0o644, false),
            (0o601, false),
        ] {
            store(&path, "key\n", mode);
            assert_eq!(found(&chain).is_some(), used, "{mode:o}");
        }
    }

    #[test]
    fn a_stored_file_without_a_key_is_no_key_but_an_explicit_one_is_an_error() {
        let data = tempfile::tempdir().unwrap();
        let path = stored_path(data.path(), HOSTS[0]);
        store(&path, " \n", 0o600);
        assert_eq!(found(&chain(None, None, data.path())), None);

        let explicit = data.path().join("key");
        let chain = KeyChain::for_file(explicit.clone());
        let problem = || {
            let error = chain.lookup().unwrap_err();
            assert!(matches!(error, Error::Config(_)), "{error:?}");
            error.to_string()
        };
        assert!(problem().contains("No such file"), "{}", problem());
        store(&explicit, "\n", 0o600);
        assert!(problem().contains("empty"), "{}", problem());
        store(&explicit, "key\n", 0o644);
        assert!(problem().contains("chmod 600"), "{}", problem());
        assert!(chain.check_named().is_err());
        store(&explicit, "key\n", 0o600);
        assert_eq!(found(&chain).as_deref(), Some("key"));
    }
}
