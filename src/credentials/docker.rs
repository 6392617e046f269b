//! Whom an OCI registry is told we are.
//!
//! ```text
//! --oci-user with --oci-password-file, or their variables
//! the Musher key, as user `_token`           only for Musher's own registry
//! $DOCKER_CONFIG/config.json                 entries and credential helpers, as `docker login` left them
//! containers' auth.json                      as `podman login` and `skopeo login` left them
//! ```
//!
//! The first that has something for the registry's host wins; nobody is an answer too, since most
//! registries show public repositories to anybody. Everything is read anew at each look, so that a
//! rotated password is found without a restart.
//!
//! The files are read by the `docker_credential` crate. What it lacks is here: a limit on the time
//! that a helper may take and on the size of a file, the places of auth.json, and names below a host
//! in it.

use std::fmt;
use std::fs::File;
use std::io::Read as _;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use docker_credential::{CredentialRetrievalError, DockerCredential};
use rustix::fs::{Mode, OFlags};

use super::file::{KeyFile, OnProblem};
use super::{ApiKey, KeyChain};
use crate::error::{Error, Result};

/// The variable that holds the password for the OCI registry.
pub const PASSWORD_VARIABLE: &str = "MUSHERFS_OCI_PASSWORD";
/// The user's name that goes with a Musher key.
pub const KEY_USER: &str = "_token";

/// Largest file that is read.
const MAX_FILE: u64 = 1 << 20;
/// How long a credential helper may take: it may have to unlock something.
const PATIENCE: Duration = Duration::from_secs(5);
/// What Docker Hub's entries are called, whatever host is asked.
const HUB: &str = "https://index.docker.io/v1/";

/// Who we are. Never printed.
#[derive(Clone, PartialEq, Eq)]
pub enum Login {
    /// A name and a password, or a token in a password's place.
    Password {
        /// The name.
        user: String,
        /// The secret.
        password: String,
    },
    /// A token that a registry's token server takes for a while in exchange for others.
    IdentityToken(String),
}

impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Login(…)")
    }
}

/// A name and a password that were given for one registry.
#[derive(Debug, Clone)]
pub struct GivenLogin {
    user: String,
    password: Password,
}

#[derive(Debug, Clone)]
enum Password {
    Value(ApiKey),
    File(Arc<KeyFile>),
}

impl GivenLogin {
    /// The login of these settings; without a file the password is in the environment. `None` if
    /// there is none.
    ///
    /// # Errors
    ///
    /// [`Error::Config`] for half a login.
    pub fn find(user: Option<&str>, password_file: Option<PathBuf>) -> Result<Option<Self>> {
        let variable =
            |name| std::env::var_os(name).map(|text| text.to_string_lossy().into_owned());
        Self::choose(user, password_file, &variable)
    }

    fn choose(
        user: Option<&str>,
        password_file: Option<PathBuf>,
        variable: &dyn Fn(&'static str) -> Option<String>,
    ) -> Result<Option<Self>> {
        let variable = |name| variable(name).filter(|text: &String| !text.trim().is_empty());
        let user = user.map(str::to_owned);
        let password = match password_file {
            Some(path) => Some(Password::File(Arc::new(KeyFile::new(
                path,
                OnProblem::Fail,
            )))),
            None => variable(PASSWORD_VARIABLE)
                .map(|text| {
                    ApiKey::new(text).map(Password::Value).map_err(|_| {
                        Error::Config(format!(
                            "{PASSWORD_VARIABLE} has characters that no password may have here"
                        ))
                    })
                })
                .transpose()?,
        };
        match (user, password) {
            (Some(user), Some(password)) if !user.contains(':') => {
                Ok(Some(Self { user, password }))
            }
            (Some(_), Some(_)) => Err(Error::Config(
                "the user name for the OCI registry must not contain a colon".into(),
            )),
            (None, None) => Ok(None),
            (Some(_), None) => Err(Error::Config(format!(
                "a user name for the OCI registry needs --oci-password-file or {PASSWORD_VARIABLE}"
            ))),
            (None, Some(Password::File(_))) => Err(Error::Config(
                "a password for the OCI registry needs --oci-user or MUSHERFS_OCI_USER".into(),
            )),
            (None, Some(Password::Value(_))) => Err(Error::Config(format!(
                "{PASSWORD_VARIABLE} needs --oci-user or MUSHERFS_OCI_USER"
            ))),
        }
    }

    /// Always this.
    pub fn fixed(user: &str, password: &str) -> Result<Self> {
        Ok(Self {
            user: user.to_owned(),
            password: Password::Value(ApiKey::new(password)?),
        })
    }

    fn login(&self) -> Result<Login> {
        let password = match &self.password {
            Password::Value(password) => password.clone(),
            Password::File(file) => file
                .read()?
                .ok_or_else(|| Error::Config("the password file is empty".into()))?,
        };
        Ok(Login::Password {
            user: self.user.clone(),
            password: password.expose().to_owned(),
        })
    }
}

/// Where logins of several registries are filed, best first.
#[derive(Debug, Clone, Default)]
pub struct LoginFiles(Vec<PathBuf>);

impl LoginFiles {
    /// The files that docker, podman and skopeo use for this user.
    pub fn from_env() -> Self {
        Self::resolve(&|name| std::env::var_os(name).map(PathBuf::from))
    }

    fn resolve(variable: &dyn Fn(&str) -> Option<PathBuf>) -> Self {
        let variable = |name| variable(name).filter(|path| path.is_absolute());
        let home = variable("HOME");
        let mut files = Vec::new();
        let docker = variable("DOCKER_CONFIG").or_else(|| Some(home.as_ref()?.join(".docker")));
        files.extend(docker.map(|dir| dir.join("config.json")));
        files.extend(variable("REGISTRY_AUTH_FILE"));
        for dir in [
            variable("XDG_RUNTIME_DIR"),
            variable("XDG_CONFIG_HOME").or_else(|| Some(home.as_ref()?.join(".config"))),
        ] {
            files.extend(dir.map(|dir| dir.join("containers/auth.json")));
        }
        Self(files)
    }

    /// These files only.
    pub fn at(files: Vec<PathBuf>) -> Self {
        Self(files)
    }
}

/// Where to look for the login of one registry. The default looks nowhere.
#[derive(Debug, Clone, Default)]
pub struct LoginChain {
    given: Option<GivenLogin>,
    key: Option<KeyChain>,
    files: LoginFiles,
    /// What entries of the registry may be called, the most specific first.
    names: Vec<String>,
    /// Cleared when all files are fine again.
    warned: Arc<AtomicBool>,
}

impl LoginChain {
    /// Looks for the login of the registry at `host` (`name[:port]`), below whose `prefix` (which
    /// may be empty) bundles are. `key` is where to look for the Musher key, if this is Musher's
    /// registry.
    pub fn new(
        given: Option<GivenLogin>,
        key: Option<KeyChain>,
        files: LoginFiles,
        host: &str,
        prefix: &str,
    ) -> Self {
        let mut names = Vec::new();
        let mut prefix = prefix;
        while !prefix.is_empty() {
            names.push(format!("{host}/{prefix}"));
            prefix = prefix.rsplit_once('/').map_or("", |(parent, _)| parent);
        }
        names.push(match host {
            "registry-1.docker.io" | "index.docker.io" | "docker.io" => HUB.to_owned(),
            host => host.to_owned(),
        });
        Self {
            given,
            key,
            files,
            names,
            warned: Arc::default(),
        }
    }

    /// Looks anew. Reads files and may run a helper: not for a thread that serves requests.
    ///
    /// # Errors
    ///
    /// [`Error::Config`] if a file that was given on the command line cannot be used.
    pub fn lookup(&self) -> Result<Option<Login>> {
        if let Some(given) = &self.given {
            return given.login().map(Some);
        }
        if let Some(chain) = &self.key
            && let Some(key) = chain.lookup()?
        {
            return Ok(Some(Login::Password {
                user: KEY_USER.to_owned(),
                password: key.expose().to_owned(),
            }));
        }
        let mut warned = false;
        for file in &self.files.0 {
            match self.look_in(file) {
                Ok(Some(login)) => return Ok(Some(login)),
                Ok(None) => {}
                Err(problem) => {
                    warned = true;
                    if !self.warned.swap(true, Ordering::Relaxed) {
                        tracing::warn!("the logins in {} are not used: {problem}", file.display());
                    }
                }
            }
        }
        if !warned {
            self.warned.store(false, Ordering::Relaxed);
        }
        Ok(None)
    }

    fn look_in(&self, file: &Path) -> Result<Option<Login>, String> {
        let Some(json) = read(file)? else {
            return Ok(None);
        };
        // Only containers' files have names below a host; a helper is asked for the host alone.
        let shorter = match file.file_name() {
            Some(name) if name == "config.json" => &self.names[self.names.len() - 1..],
            _ => &self.names[..],
        };
        for name in shorter {
            match ask(json.clone(), name.clone())? {
                Ok(DockerCredential::UsernamePassword(user, password)) => {
                    return Ok(Some(Login::Password { user, password }));
                }
                Ok(DockerCredential::IdentityToken(token)) => {
                    return Ok(Some(Login::IdentityToken(token)));
                }
                Err(CredentialRetrievalError::NoCredentialConfigured) => {}
                // What a helper says that has none, on either of its outputs.
                Err(CredentialRetrievalError::HelperFailure { stdout, stderr, .. })
                    if format!("{stdout}{stderr}").contains("credentials not found") => {}
                // The others' texts may repeat what a helper printed.
                Err(CredentialRetrievalError::HelperFailure { helper, .. }) => {
                    return Err(format!("{helper} failed"));
                }
                Err(error) => return Err(error.to_string()),
            }
        }
        Ok(None)
    }
}

/// Reads a small regular file; `None` if there is none.
fn read(path: &Path) -> Result<Option<Vec<u8>>, String> {
    // Not blocking: opening a FIFO would otherwise wait for a writer for ever.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let descriptor: OwnedFd = match rustix::fs::open(path, flags, Mode::empty()) {
        Ok(descriptor) => descriptor,
        Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR) => return Ok(None),
        Err(error) => return Err(error.to_string()),
    };
    let file = File::from(descriptor);
    if !file.metadata().is_ok_and(|meta| meta.is_file()) {
        return Err("it is not a regular file".into());
    }
    let mut bytes = Vec::new();
    file.take(MAX_FILE + 1)
        .read_to_end(&mut bytes)
        .map_err(|error| error.to_string())?;
    if bytes.len() as u64 > MAX_FILE {
        return Err("it is too large".into());
    }
    Ok(Some(bytes))
}

/// Asks the crate in a thread of its own, since a helper may never answer. One that was given up
/// ends with its helper.
fn ask(
    json: Vec<u8>,
    name: String,
) -> Result<Result<DockerCredential, CredentialRetrievalError>, String> {
    let (sender, receiver) = mpsc::channel();
    thread::Builder::new()
        .name("login".into())
        .spawn(move || {
            let found = docker_credential::get_credential_from_reader(&*json, &name);
            // Nobody waits any more if it took too long.
            let _ = sender.send(found);
        })
        .map_err(|error| error.to_string())?;
    match receiver.recv_timeout(PATIENCE) {
        Ok(found) => Ok(found),
        Err(mpsc::RecvTimeoutError::Timeout) => Err(format!(
            "a credential helper did not answer within {PATIENCE:?}"
        )),
        Err(mpsc::RecvTimeoutError::Disconnected) => Err("they cannot be read".into()),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;

    use super::*;

    fn chain(files: &[PathBuf], host: &str, prefix: &str) -> LoginChain {
        let files = LoginFiles::at(files.to_vec());
        LoginChain::new(None, None, files, host, prefix)
    }

    fn password(user: &str, password: &str) -> Option<Login> {
        Some(Login::Password {
            user: user.into(),
            password: password.into(),
        })
    }

    fn auth(user: &str, password: &str) -> String {
        STANDARD.encode(format!("{user}:{password}"))
    }

    #[test]
    fn entries_of_docker_and_podman_are_found_in_their_order() {
        let scratch = tempfile::tempdir().unwrap();
        let docker = scratch.path().join("config.json");
        let podman = scratch.path().join("auth.json");
        let look = |host: &str, prefix: &str| {
            let files = [docker.clone(), podman.clone()];
            chain(&files, host, prefix).lookup().unwrap()
        };
        assert_eq!(look("r.example", ""), None, "no file is no login");
        fs::write(
            &podman,
            format!(
                r#"{{"auths":{{"r.example/team":{{"auth":"{}"}},"r.example":{{"auth":"{}"}}}}}}"#,
                auth("team", "t"),
                auth("all", "a:b"),
            ),
        )
        .unwrap();
        assert_eq!(look("r.example", "team/sub"), password("team", "t"));
        assert_eq!(look("r.example", "other"), password("all", "a:b"));
        assert_eq!(look("other.example", ""), None);
        fs::write(
            &docker,
            format!(
                r#"{{"auths":{{"r.example":{{"auth":"{}"}},
                "id.example":{{"identitytoken":"secret"}},
                "https://index.docker.io/v1/":{{"auth":"{}"}}}}}}"#,
                auth("docker", "d"),
                auth("hub", "h"),
            ),
        )
        .unwrap();
        assert_eq!(look("r.example", ""), password("docker", "d"));
        assert_eq!(look("registry-1.docker.io", ""), password("hub", "h"));
        assert_eq!(
            look("id.example", ""),
            Some(Login::IdentityToken("secret".into()))
        );
    }

    #[test]
    fn what_cannot_be_read_is_no_login_and_is_not_waited_for() {
        let scratch = tempfile::tempdir().unwrap();
        let file = scratch.path().join("config.json");
        fs::write(&file, "not json").unwrap();
        assert_eq!(
            chain(std::slice::from_ref(&file), "r", "")
                .lookup()
                .unwrap(),
            None
        );
        let fifo = scratch.path().join("auth.json");
        let kind = rustix::fs::FileType::Fifo;
        rustix::fs::mknodat(rustix::fs::CWD, &fifo, kind, Mode::RUSR, 0).unwrap();
        assert_eq!(chain(&[fifo], "r", "").lookup().unwrap(), None);
        fs::write(&file, r#"{"credsStore":"is-not-installed-here"}"#).unwrap();
        assert_eq!(chain(&[file], "r", "").lookup().unwrap(), None);
    }

    #[test]
    fn the_musher_key_goes_before_files_and_a_given_login_before_all() {
        let scratch = tempfile::tempdir().unwrap();
        let file = scratch.path().join("config.json");
        let entry = format!(r#"{{"auths":{{"r":{{"auth":"{}"}}}}}}"#, auth("u", "p"));
        fs::write(&file, entry).unwrap();
        let files = LoginFiles::at(vec![file]);
        let key = KeyChain::fixed(ApiKey::new("mush_key").unwrap());
        let given = GivenLogin::fixed("me", "secret").unwrap();
        let look = |given, key| {
            LoginChain::new(given, key, files.clone(), "r", "")
                .lookup()
                .unwrap()
        };
        assert_eq!(look(None, None), password("u", "p"));
        assert_eq!(
            look(None, Some(key.clone())),
            password("_token", "mush_key")
        );
        assert_eq!(look(Some(given), Some(key)), password("me", "secret"));
    }

    #[test]
    fn half_a_given_login_is_an_error() {
        let choose = |user: Option<&str>, variables: &[(&str, &str)]| {
            let find = |name: &'static str| {
                let found = variables.iter().find(|(known, _)| *known == name);
                found.map(|(_, value)| (*value).to_owned())
            };
            GivenLogin::choose(user, None, &find)
        };
        assert!(choose(None, &[]).unwrap().is_none());
        assert!(choose(Some("me"), &[]).is_err());
        assert!(choose(None, &[(PASSWORD_VARIABLE, "x")]).is_err());
        let both = [(PASSWORD_VARIABLE, "hunter2")];
        let login = choose(Some("me"), &both).unwrap().unwrap();
        assert_eq!(login.login().unwrap(), password("me", "hunter2").unwrap());
        assert!(!format!("{login:?}").contains("hunter2"));
        assert!(choose(Some("a:b"), &both).is_err());
    }

    #[test]
    fn the_files_are_where_docker_podman_and_skopeo_have_them() {
        let find = |name: &str| match name {
            "HOME" => Some(PathBuf::from("/home/u")),
            "XDG_RUNTIME_DIR" => Some(PathBuf::from("/run/user/1")),
            _ => None,
        };
        let expected = [
            "/home/u/.docker/config.json",
            "/run/user/1/containers/auth.json",
            "/home/u/.config/containers/auth.json",
        ];
        assert_eq!(LoginFiles::resolve(&find).0, expected.map(PathBuf::from));
    }
}
