//! What commands that need a registry have in common: the options that say which one, and the
//! settings that follow from them.

use std::fs::File;
use std::ops::Deref;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::failure::{Exit, Failure};
use crate::care::keeper;
use crate::care::lockfile::Lockfile;
use crate::client::{self, Client};
use crate::config::{Config, Origin, Overrides, value};
use crate::credentials::{ApiKey, KEY_VARIABLE, KeyChain, KeyOrigin, given_key};
use crate::error::Error;
use crate::paths::Directories;
use crate::resolve::Locked;
use crate::source::layout::LayoutSource;

/// Where bundles come from. Not `Debug`: a key may be among them.
#[derive(clap::Args)]
#[command(next_help_heading = "Registry")]
pub(super) struct SourceArgs {
    /// The registry [env: MUSHER_API_URL] [default: https://api.musher.dev]
    // Not parsed by clap, which would repeat a password in it.
    #[arg(long, value_name = "URL")]
    api_url: Option<String>,

    /// Mount what is in an OCI registry: [http[s]://]HOST[:PORT][/PREFIX], such as ghcr.io, or
    /// oci-layout:DIR [env: MUSHER_OCI_REGISTRY_URL]
    ///
    /// DIR is an OCI image layout, as `musherfs export` writes it. Without --api-url it is the only registry. With one, the API says what there is, and files
    /// come from the OCI registry first.
    #[arg(long, value_name = "REGISTRY")]
    oci: Option<String>,

    /// The user's name for the OCI registry, if it is not in the files of `docker login`
    /// [env: MUSHERFS_OCI_USER]
    #[arg(long, value_name = "NAME")]
    oci_user: Option<String>,

    /// Read the password for the OCI registry from this file, which only its owner may be able to
    /// read [env: MUSHERFS_OCI_PASSWORD_FILE, or MUSHERFS_OCI_PASSWORD for the password itself]
    #[arg(long, value_name = "FILE")]
    oci_password_file: Option<PathBuf>,

    /// Ask this mirror for content first; can be repeated: [api=|oci=|HOST=]URL[#resolve]
    /// [env: MUSHERFS_MIRRORS]
    ///
    /// Content is checked, so a mirror need not be trusted. With `#resolve` it is asked for names
    /// too, and then it must be.
    #[arg(long = "mirror", value_name = "URL")]
    mirrors: Vec<String>,

    /// The API key [env: MUSHER_API_KEY]
    ///
    /// Other users of this machine can see it in the list of processes: prefer the variable or a
    /// file.
    #[arg(long, value_name = "KEY", hide_default_value = true)]
    api_key: Option<String>,

    /// Read the API key from this file, which only its owner may be able to read. MUSHER_API_KEY wins
    /// over it [env: MUSHERFS_API_KEY_FILE]
    #[arg(long, value_name = "FILE")]
    api_key_file: Option<PathBuf>,

    /// Trust the certificates in this PEM file, besides the system's
    /// [env: MUSHER_NETWORK_CA_CERT_FILE]
    #[arg(long, value_name = "FILE")]
    ca_file: Option<PathBuf>,

    /// Allow http to registries on other machines; anybody in between can read the API key
    /// [env: MUSHERFS_INSECURE_HTTP]
    #[arg(long)]
    insecure_http: bool,

    /// Contact nobody: only what is cached [env: MUSHERFS_OFFLINE]
    #[arg(long)]
    offline: bool,
}

impl SourceArgs {
    /// Adds these options to `overrides`.
    pub(super) fn apply(&self, overrides: &mut Overrides) -> Result<(), Failure> {
        if let Some(text) = &self.api_url {
            let url = value::url(text).map_err(|problem| wrong("--api-url", &problem))?;
            overrides.api_url = Some(url);
        }
        if let Some(text) = &self.oci {
            let url = value::oci(text).map_err(|problem| wrong("--oci", &problem))?;
            overrides.oci_registry_url = Some(url);
        }
        for text in &self.mirrors {
            let mirror = value::mirror(text).map_err(|problem| wrong("--mirror", &problem))?;
            overrides.mirrors.push(mirror);
        }
        overrides.oci_user = self.oci_user.clone().or(overrides.oci_user.take());
        overrides.oci_password_file = self
            .oci_password_file
            .clone()
            .or(overrides.oci_password_file.take());
        overrides.ca_file = self.ca_file.clone().or(overrides.ca_file.take());
        overrides.api_key_file = self.api_key_file.clone().or(overrides.api_key_file.take());
        overrides.insecure_http = given(self.insecure_http).or(overrides.insecure_http);
        overrides.offline = given(self.offline).or(overrides.offline);
        Ok(())
    }

    /// The settings for a command that has no options of its own.
    pub(super) fn context(&self) -> Result<Context, Failure> {
        let mut overrides = Overrides::default();
        self.apply(&mut overrides)?;
        Context::load(overrides, self.api_key.as_deref())
    }

    /// The key on the command line.
    pub(super) fn api_key(&self) -> Option<&str> {
        self.api_key.as_deref()
    }
}

/// How long a thread for what waits for the disk stays without work.
///
/// Its threads take turns, so that with a little to do all the time none would ever be without work
/// for tokio's 10 s: as many as the largest burst took would stay, each with the memory that its
/// allocator keeps for it. Starting one takes some 30 µs.
const IDLE: Duration = Duration::from_millis(20);

/// What a command's tasks run on.
///
/// Left as it is when the command is done: looking up a host's name and reading a disk cannot be called
/// off, and waiting for them would outlive every deadline, by as long as name servers are silent.
pub(super) struct Runtime(Option<tokio::runtime::Runtime>);

impl Deref for Runtime {
    type Target = tokio::runtime::Runtime;

    fn deref(&self) -> &Self::Target {
        self.0.as_ref().expect("only dropping takes it")
    }
}

impl Drop for Runtime {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

/// A runtime for the network: a few threads, since they mostly wait.
pub(super) fn runtime() -> Result<Runtime, Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("musherfs")
        .thread_keep_alive(IDLE)
        .enable_all()
        .build()
        .map_err(|error| Error::Internal(format!("no runtime: {error}")))?;
    Ok(Runtime(Some(runtime)))
}

/// A switch on the command line can only say yes; not giving it leaves the question open.
pub(super) fn given(switch: bool) -> Option<bool> {
    switch.then_some(true)
}

/// A value that no setting can have, wherever it stands.
fn wrong(option: &str, problem: &str) -> Failure {
    Failure::text(Exit::Configuration, format!("{option}: {problem}"))
}

/// A setting that names a file is wrong when that file is, whatever the reason.
fn unusable(origin: &Origin, error: Error) -> Failure {
    let failure = Failure::from(error);
    Failure {
        code: Exit::Configuration.into(),
        message: format!("{origin}: {}", failure.message),
        ..failure
    }
}

/// All that a command needs to know of its surroundings.
pub(super) struct Context {
    pub(super) directories: Directories,
    pub(super) config: Config,
    given_key: Option<(ApiKey, KeyOrigin)>,
}

impl Context {
    /// Reads environment and configuration file; contacts nobody.
    pub(super) fn load(overrides: Overrides, api_key: Option<&str>) -> Result<Self, Failure> {
        let directories = Directories::from_env()?;
        let config = Config::load(&directories, overrides)?;
        Ok(Self {
            given_key: given_key(api_key)?,
            directories,
            config,
        })
    }

    /// What is left when the settings cannot be used: directories and defaults, and nobody is asked.
    pub(super) fn without_settings() -> Result<Self, Failure> {
        let offline = Overrides {
            offline: Some(true),
            ..Overrides::default()
        };
        Ok(Self {
            directories: Directories::from_env()?,
            config: Config::without_surroundings(offline)?,
            given_key: given_key(None).ok().flatten(),
        })
    }

    /// Where to look for the key of the registry, whose directory names in the shared cache are
    /// `host_ids`, best first.
    fn keys(&self, host_ids: &[impl AsRef<str>]) -> KeyChain {
        KeyChain::new(
            self.given_key.clone(),
            self.config.api_key_file.value.clone(),
            &self.directories.credential_roots(),
            self.config.registry(),
            host_ids,
        )
    }

    /// Everything that is needed to ask the registry and the cache, for a command: what it writes
    /// to the cache stays below the cache's limit. Contacts nobody.
    pub(super) fn client(&self) -> Result<Client, Failure> {
        let client = self.unlimited_client()?;
        let (state, limit) = (self.directories.own_state(), self.config.cache_limit());
        keeper::limit_growth(&client, &state, limit);
        Ok(client)
    }

    /// The same for a mount, which has a keeper for its cache.
    pub(super) fn unlimited_client(&self) -> Result<Client, Failure> {
        let locked = self.check_files()?.map(Arc::new);
        Ok(Client::locked(
            &self.config,
            &self.directories,
            self.key_chain()?,
            locked,
        )?)
    }

    /// Looks whether the files that settings name can be used, and returns what the lockfile says.
    fn check_files(&self) -> Result<Option<Locked>, Failure> {
        let config = &self.config;
        if let Some(path) = client::layout_of(config) {
            let opened = LayoutSource::open(&path);
            opened.map_err(|error| unusable(&config.oci_registry_url.origin, error))?;
        } else if let Some(path) = &*config.ca_file
            && !*config.offline
        {
            let opened = File::open(path).map_err(|error| Error::io(path, error));
            opened.map_err(|error| unusable(&config.ca_file.origin, error))?;
        }
        let Some(path) = &*config.locked else {
            return Ok(None);
        };
        Lockfile::read(path)
            .and_then(|lockfile| lockfile.locked(config.registry()))
            .map(Some)
            .map_err(|error| unusable(&config.locked.origin, error))
    }

    /// Looks whether all files that the user has named can be used, the key's included.
    pub(super) fn check(&self) -> Result<(), Failure> {
        self.check_files()?;
        let checked = self.key_chain()?.check_named();
        checked.map_err(|error| unusable(&self.config.api_key_file.origin, error))
    }

    /// Where the key of the registry is looked for.
    pub(super) fn key_chain(&self) -> Result<KeyChain, Failure> {
        let host = client::host_of(&self.config)?;
        let mut hosts = vec![host.as_str().to_owned()];
        hosts.extend(
            host.legacy_spellings()
                .iter()
                .map(|host| host.as_str().to_owned()),
        );
        Ok(self.keys(&hosts))
    }

    /// Logs what had to be ignored on the way. For when there is a log.
    pub(super) fn log_warnings(&self) {
        for warning in &self.directories.warnings {
            tracing::warn!("{warning}");
        }
        // As in the other Musher tools, the variable comes before all files.
        if let (Origin::Flag(option), Some((_, KeyOrigin::Environment))) =
            (&self.config.api_key_file.origin, &self.given_key)
        {
            tracing::warn!("{option} is not read: {KEY_VARIABLE} is set, and wins");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::sync::Barrier;
    use std::sync::mpsc;
    use std::time::Instant;

    use super::*;

    /// Tells when the thread ends that it is given to.
    struct Life(mpsc::Sender<()>);

    impl Drop for Life {
        fn drop(&mut self) {
            let _ = self.0.send(());
        }
    }

    thread_local! {
        static LIFE: RefCell<Option<Life>> = const { RefCell::new(None) };
    }

    #[test]
    fn the_threads_of_a_burst_end_although_there_is_always_a_little_to_do() {
        const BURST: usize = 32;
        // What so little takes.
        const FEW: usize = 8;
        let runtime = runtime().unwrap();
        let (told, ends) = mpsc::channel();
        let all_there = Arc::new(Barrier::new(BURST));
        let burst: Vec<_> = (0..BURST)
            .map(|_| {
                let (life, all_there) = (Life(told.clone()), Arc::clone(&all_there));
                runtime.spawn_blocking(move || {
                    LIFE.set(Some(life));
                    all_there.wait();
                })
            })
            .collect();
        runtime.block_on(futures_util::future::join_all(burst));
        let deadline = Instant::now() + Duration::from_secs(60);
        let mut ended = 0;
        while ended < BURST - FEW {
            assert!(Instant::now() < deadline, "{ended} have ended");
            // Each gets some of it, if it is still there.
            runtime.block_on(runtime.spawn_blocking(|| ())).unwrap();
            ended += usize::from(ends.recv_timeout(Duration::from_millis(10)).is_ok());
        }
    }
}
