//! The doctor names what is wrong with a machine, what to do about it, and how bad it is.
//!
//! Each test takes a healthy machine, made of files in a temporary directory and a registry on
//! loopback, and breaks one thing.

#![allow(clippy::unwrap_used, clippy::panic)]

mod oci;
#[path = "../support/mod.rs"]
mod support;

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use musherfs::config::{Config, Overrides};
use musherfs::credentials::docker::LoginFiles;
use musherfs::credentials::{ApiKey, KeyChain};
use musherfs::doctor::{Area, Finding, Level, Probe, Space};
use musherfs::mount::mountinfo::MountTable;
use musherfs::mount::touch::Liveness;
use musherfs::paths::{Directories, Os};
use support::fault_server::{FaultServer, Reply};
use support::registry::TestRegistry;

const KEY: &str = "sk-musher-very-secret-0123456789";

/// Generous: only a defect takes as long.
const PATIENCE: Duration = Duration::from_secs(30);

struct Machine {
    dir: tempfile::TempDir,
    registry: TestRegistry,
    probe: Probe,
}

fn directories(home: &Path) -> Directories {
    let nothing = |_: &str| None;
    let mut directories = Directories::resolve(Os::Linux, &nothing, Some(home)).unwrap();
    directories.runtime = home.join("run");
    directories
}

fn config(api_url: &str) -> Config {
    Config::without_surroundings(Overrides {
        api_url: Some(api_url.parse().unwrap()),
        ..Overrides::default()
    })
    .unwrap()
}

fn table(rows: &str) -> MountTable {
    let text = format!("21 1 253:0 / / rw shared:1 - ext4 /dev/vda rw\n{rows}");
    MountTable::parse(text.as_bytes())
}

impl Machine {
    fn healthy() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        for path in ["dev", "usr/bin", "etc", "home"] {
            fs::create_dir_all(root.join(path)).unwrap();
        }
        // A device that can be opened, whoever runs this.
        symlink("/dev/null", root.join("dev/fuse")).unwrap();
        let registry = TestRegistry::start_with_token(KEY);
        let home = dir.path().join("home");
        fs::create_dir_all(&home).unwrap();
        let mountpoint = dir.path().join("mnt");
        fs::create_dir(&mountpoint).unwrap();
        let machine = Self {
            probe: Probe {
                root,
                is_root: false,
                directories: directories(&home),
                config: config(&registry.url()),
                keys: KeyChain::fixed(ApiKey::new(KEY).unwrap()),
                logins: LoginFiles::default(),
                mountpoint,
                table: table(""),
                proxies: Vec::new(),
                space: |_| {
                    Ok(Space {
                        free: 50 << 30,
                        total: 100 << 30,
                    })
                },
                ask: Arc::new(|_, _| Liveness::Alive),
                patience: PATIENCE,
            },
            dir,
            registry,
        };
        machine.write("usr/bin/fusermount3", "");
        machine.chmod("usr/bin/fusermount3", 0o4755);
        machine.write("etc/fuse.conf", "# user_allow_other\n");
        machine
    }

    fn path(&self, path: &str) -> PathBuf {
        self.probe.root.join(path)
    }

    fn write(&self, path: &str, text: &str) {
        let path = self.path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn chmod(&self, path: &str, mode: u32) {
        fs::set_permissions(self.path(path), fs::Permissions::from_mode(mode)).unwrap();
    }

    fn examine(self) -> Vec<Finding> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let findings = runtime.block_on(self.probe.run());
        runtime.shutdown_background();
        drop((self.dir, self.registry));
        let text = serde_json::to_string(&findings).unwrap();
        assert!(!text.contains(KEY), "{text}");
        for finding in &findings {
            let has_remedy = finding.remedy.as_ref().is_some_and(|text| text.len() > 10);
            assert_eq!(has_remedy, finding.level > Level::Ok, "{finding:?}");
        }
        findings
    }

    /// Asserts that the only thing wrong is `id`, and that the message names what the user must know.
    #[track_caller]
    fn has_only(self, id: &str, level: Level, part: &str) -> Finding {
        let findings = self.examine();
        let mut bad = findings.iter().filter(|one| one.level > Level::Ok);
        let found = bad.next().unwrap_or_else(|| panic!("{findings:?}")).clone();
        assert_eq!(bad.next(), None, "{findings:?}");
        assert_eq!((found.id, found.level), (id, level), "{found:?}");
        assert!(found.message.contains(part), "{found:?}");
        found
    }
}

fn listening() -> FaultServer {
    FaultServer::start(|_| Reply::json(&serde_json::json!({ "data": [] })))
}

#[test]
fn nothing_is_wrong_with_a_healthy_machine() {
    let findings = Machine::healthy().examine();
    let bad: Vec<_> = findings
        .iter()
        .filter(|one| one.level > Level::Ok)
        .collect();
    assert!(bad.is_empty(), "{bad:?}");
    for id in [
        "fuse-device",
        "fusermount3",
        "mounts",
        "mountpoint",
        "propagation",
        "cache",
        "state",
        "free-space",
        "runtime",
        "key",
        "dns",
        "tcp",
        "registry",
        "key-accepted",
        "clock",
    ] {
        assert!(
            findings.iter().any(|one| one.id == id),
            "{id} was not looked at"
        );
    }
}

#[test]
fn a_missing_device() {
    let machine = Machine::healthy();
    fs::remove_file(machine.path("dev/fuse")).unwrap();
    machine.has_only("fuse-device", Level::Fail, "/dev/fuse");
}

#[test]
fn a_file_in_place_of_the_device() {
    let machine = Machine::healthy();
    fs::remove_file(machine.path("dev/fuse")).unwrap();
    machine.write("dev/fuse", "");
    machine.has_only("fuse-device", Level::Fail, "not a device");
}

#[test]
fn a_missing_fusermount3_matters_to_plain_users_only() {
    let machine = Machine::healthy();
    fs::remove_file(machine.path("usr/bin/fusermount3")).unwrap();
    machine.has_only("fusermount3", Level::Fail, "not installed");

    let mut machine = Machine::healthy();
    fs::remove_file(machine.path("usr/bin/fusermount3")).unwrap();
    machine.probe.is_root = true;
    assert!(machine.examine().iter().all(|one| one.level == Level::Ok));
}

#[test]
fn a_fusermount3_without_its_setuid_bit() {
    let machine = Machine::healthy();
    machine.chmod("usr/bin/fusermount3", 0o755);
    machine.has_only("fusermount3", Level::Fail, "setuid");
}

#[test]
fn allow_other_that_the_administrator_has_not_permitted() {
    let mut machine = Machine::healthy();
    machine.probe.config.allow_other.value = true;
    let found = machine.has_only("fuse-conf", Level::Fail, "allow_other");
    assert!(found.remedy.unwrap().contains("user_allow_other"));

    let mut machine = Machine::healthy();
    machine.probe.config.allow_other.value = true;
    machine.write("etc/fuse.conf", "user_allow_other # for containers\n");
    assert!(machine.examine().iter().all(|one| one.level == Level::Ok));
}

#[test]
fn as_many_mounts_as_fuse_conf_allows() {
    let mut machine = Machine::healthy();
    machine.write("etc/fuse.conf", "mount_max = 1\n");
    machine.probe.table = table("30 21 0:50 / /x rw - fuse.other x rw\n");
    machine.has_only("fuse-conf", Level::Fail, "allows 1");
}

#[test]
fn an_apparmor_profile_that_does_not_know_the_mountpoint() {
    let confined = |machine: &mut Machine, dir: &str| {
        machine.write("sys/module/apparmor/parameters/enabled", "Y\n");
        machine.write("etc/apparmor.d/fusermount3", "profile fusermount3 {}\n");
        machine.probe.mountpoint = dir.into();
    };
    let mut machine = Machine::healthy();
    confined(&mut machine, "/proc/musher");
    let findings = machine.examine();
    let found = findings.iter().find(|one| one.id == "apparmor").unwrap();
    assert_eq!(found.level, Level::Fail);
    assert!(found.remedy.as_ref().unwrap().contains("local/fusermount3"));

    let mut machine = Machine::healthy();
    confined(&mut machine, "/proc/musher");
    let rule = "mount fstype=fuse.musherfs -> /proc/musher/,\n";
    machine.write("etc/apparmor.d/local/fusermount3", rule);
    let findings = machine.examine();
    let found = findings.iter().find(|one| one.id == "apparmor").unwrap();
    assert_eq!(found.level, Level::Ok);
}

#[test]
fn selinux_that_keeps_containers_out() {
    let mut machine = Machine::healthy();
    machine.write("sys/fs/selinux/enforce", "1");
    machine.probe.table = table("30 21 0:50 / /m ro - fuse.musherfs musherfs ro,user_id=0\n");
    let found = machine.has_only("selinux", Level::Warn, "/m");
    assert!(found.remedy.unwrap().contains("container_file_t"));
}

#[test]
fn a_root_that_is_none() {
    let mut machine = Machine::healthy();
    machine.probe.is_root = true;
    machine.write("proc/self/uid_map", "         0       1000          1\n");
    machine.has_only("user-namespaces", Level::Warn, "user namespace");
}

#[test]
fn user_namespaces_that_are_switched_off() {
    let machine = Machine::healthy();
    machine.write("proc/sys/user/max_user_namespaces", "0\n");
    machine.has_only("user-namespaces", Level::Warn, "switched off");
}

#[test]
fn an_updatedb_that_will_crawl_the_mount() {
    let machine = Machine::healthy();
    machine.write("etc/updatedb.conf", "PRUNEFS=\"NFS nfs fuse.sshfs\"\n");
    machine.has_only("updatedb", Level::Warn, "every night");

    let machine = Machine::healthy();
    machine.write("etc/updatedb.conf", "PRUNEFS=\"NFS fuse.musherfs\"\n");
    assert!(machine.examine().iter().all(|one| one.level == Level::Ok));
}

#[test]
fn a_mount_whose_daemon_is_gone_and_one_that_is_stuck() {
    for (liveness, id, area) in [
        (Liveness::Dead, "stale-mount", Area::Machine),
        (Liveness::Stuck, "stuck-mount", Area::Time),
    ] {
        let mut machine = Machine::healthy();
        machine.probe.table = table("30 21 0:50 / /m ro - fuse.musherfs musherfs ro,user_id=0\n");
        machine.probe.ask = Arc::new(move |dir, _| {
            assert_eq!(dir, Path::new("/m"));
            liveness
        });
        let found = machine.has_only(id, Level::Fail, "/m");
        assert_eq!(found.area, area);
        assert!(found.remedy.unwrap().contains("musherfs umount"));
    }
}

#[test]
fn a_mountpoint_with_something_in_it() {
    let machine = Machine::healthy();
    fs::write(machine.probe.mountpoint.join("notes.txt"), "").unwrap();
    machine.has_only("mountpoint", Level::Fail, "notes.txt");

    let machine = Machine::healthy();
    fs::write(machine.probe.mountpoint.join("NOT-MOUNTED"), "").unwrap();
    assert!(machine.examine().iter().all(|one| one.level == Level::Ok));
}

#[test]
fn a_mountpoint_that_somebody_else_uses() {
    let mut machine = Machine::healthy();
    let dir = machine.probe.mountpoint.display().to_string();
    machine.probe.table = table(&format!("30 21 0:50 / {dir} rw - tmpfs x rw\n"));
    machine.has_only("mountpoint", Level::Fail, "tmpfs");
}

#[test]
fn a_mountpoint_that_cannot_be_created() {
    let mut machine = Machine::healthy();
    // Below a file: nobody may create anything there, not even root.
    machine.write("file", "");
    machine.probe.mountpoint = machine.path("file/mnt");
    machine.has_only("mountpoint", Level::Fail, "file/mnt");
}

#[test]
fn a_private_mount_that_hides_remounts_from_containers() {
    let mut machine = Machine::healthy();
    machine.probe.table = MountTable::parse(b"21 1 253:0 / / rw - ext4 /dev/vda rw\n");
    // Nobody is told that something is wrong with the machine.
    machine.has_only("propagation", Level::Info, "private");
}

#[test]
fn a_cache_that_cannot_be_written() {
    let mut machine = Machine::healthy();
    // Below a file: not even root can write there.
    machine.write("file", "");
    machine.probe.directories.cache = machine.path("file/cache");
    machine.has_only("cache", Level::Fail, "cannot be written");
}

#[test]
fn a_full_disk() {
    let mut machine = Machine::healthy();
    machine.probe.space = |_| {
        Ok(Space {
            free: 1 << 30,
            total: 100 << 30,
        })
    };
    machine.has_only("free-space", Level::Warn, "1 %");
}

#[test]
fn a_runtime_directory_that_others_can_write_to() {
    let machine = Machine::healthy();
    let runtime = &machine.probe.directories.runtime;
    fs::create_dir(runtime).unwrap();
    fs::set_permissions(runtime, fs::Permissions::from_mode(0o777)).unwrap();
    machine.has_only("runtime", Level::Fail, "others may write");
}

#[test]
fn a_key_file_that_others_can_read() {
    let mut machine = Machine::healthy();
    let home = machine.dir.path().join("home");
    let file = home.join("credentials/registry.test/api-key");
    fs::create_dir_all(file.parent().unwrap()).unwrap();
    fs::write(&file, KEY).unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
    let url = "https://registry.test".parse().unwrap();
    machine.probe.keys = KeyChain::new(None, None, &[home], &url, &["registry.test"]);
    machine.has_only("key-file", Level::Warn, "0644");
}

#[test]
fn a_key_file_that_is_missing() {
    let mut machine = Machine::healthy();
    machine.probe.keys = KeyChain::for_file(machine.path("no-such-key"));
    let findings = machine.examine();
    let found = findings.iter().find(|one| one.id == "key").unwrap();
    assert_eq!((found.level, found.area), (Level::Fail, Area::Key));
    assert!(found.message.contains("no-such-key"), "{found:?}");
}

#[test]
fn a_key_that_the_registry_refuses() {
    let mut machine = Machine::healthy();
    machine.probe.keys = KeyChain::fixed(ApiKey::new("sk-another-key-000").unwrap());
    let found = machine.has_only("key-accepted", Level::Fail, "refuses the API key");
    assert_eq!(found.area, Area::Key);
}

#[test]
fn a_name_that_does_not_exist() {
    let mut machine = Machine::healthy();
    machine.probe.config = config("https://registry.invalid");
    // Where nobody answers questions about names, the resolver takes its time.
    machine.probe.patience = Duration::from_millis(500);
    let findings = machine.examine();
    let found = findings.iter().find(|one| one.id == "dns").unwrap();
    assert_eq!((found.level, found.area), (Level::Fail, Area::Network));
    assert!(found.message.contains("registry.invalid"), "{found:?}");
}

#[test]
fn a_port_that_nobody_listens_on() {
    let mut machine = Machine::healthy();
    machine.registry.stop();
    machine.probe.patience = Duration::from_secs(2);
    let findings = machine.examine();
    let found = findings.iter().find(|one| one.id == "tcp").unwrap();
    assert_eq!((found.level, found.area), (Level::Fail, Area::Network));
}

#[test]
fn a_registry_that_does_not_answer() {
    let mut machine = Machine::healthy();
    let server = FaultServer::start(|_| Reply::hang());
    machine.probe.config = config(&server.url());
    machine.probe.patience = Duration::from_millis(200);
    let findings = machine.examine();
    let found = findings.iter().find(|one| one.id == "registry").unwrap();
    assert_eq!((found.level, found.area), (Level::Fail, Area::Time));
    assert!(found.remedy.as_ref().unwrap().contains("--timeout"));
}

#[test]
fn a_login_page_in_place_of_a_registry() {
    let mut machine = Machine::healthy();
    let server = FaultServer::start(|_| Reply::bytes("text/html", "<html>Sign in</html>"));
    machine.probe.config = config(&server.url());
    let found = machine.has_only("registry", Level::Fail, "does not answer as a registry");
    assert_eq!(found.area, Area::Network);
}

#[test]
fn a_certificate_that_nobody_vouches_for() {
    let mut machine = Machine::healthy();
    let server = FaultServer::start_tls(self_signed(), |_| Reply::hang());
    machine.probe.config = config(&server.url());
    let found = machine.has_only("tls", Level::Fail, "not trusted");
    assert!(found.remedy.unwrap().contains("--ca-file"));
}

fn self_signed() -> Arc<rustls::ServerConfig> {
    use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
    let key = rcgen::KeyPair::generate().unwrap();
    let names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
    let certificate = rcgen::CertificateParams::new(names)
        .unwrap()
        .self_signed(&key)
        .unwrap();
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], key)
        .unwrap();
    Arc::new(config)
}

#[test]
fn a_clock_that_is_wrong() {
    let mut machine = Machine::healthy();
    let server = FaultServer::start(|_| {
        let yesterday = SystemTime::now() - Duration::from_secs(24 * 60 * 60);
        Reply::json(&serde_json::json!({ "data": [] }))
            .header("Date", &httpdate::fmt_http_date(yesterday))
    });
    machine.probe.config = config(&server.url());
    machine.has_only("clock", Level::Warn, "ahead of");
}

#[test]
fn a_ca_file_that_is_none() {
    let mut machine = Machine::healthy();
    machine.probe.config.ca_file.value = Some(machine.path("no-such.pem"));
    let found = machine.has_only("ca-file", Level::Fail, "no-such.pem");
    assert_eq!(found.area, Area::Configuration);
}

#[test]
fn a_registry_that_would_get_the_key_in_the_clear() {
    let mut machine = Machine::healthy();
    machine.probe.config = config("http://registry.test");
    let found = machine.has_only("registry-url", Level::Fail, "registry.test");
    assert_eq!(found.area, Area::Configuration);
}

#[test]
fn an_offline_mount_asks_nobody() {
    let mut machine = Machine::healthy();
    let server = listening();
    machine.probe.config = config(&server.url());
    machine.probe.config.offline.value = true;
    assert!(machine.examine().iter().all(|one| one.level == Level::Ok));
    assert!(server.requests().is_empty());
}

#[test]
fn a_proxy_is_named_without_its_password() {
    let mut machine = Machine::healthy();
    machine.probe.config = config("https://registry.invalid");
    machine.probe.proxies = vec![("HTTPS_PROXY", "…@proxy.test:3128".to_owned())];
    machine.probe.patience = Duration::from_millis(200);
    let findings = machine.examine();
    let found = findings.iter().find(|one| one.id == "proxy").unwrap();
    assert!(found.message.contains("proxy.test"), "{found:?}");
}
