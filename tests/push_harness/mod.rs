//! Debian's docker-registry on a loopback port, bundles to put into it, and a home to do so from.

#![allow(dead_code, unreachable_pub, clippy::unwrap_used, clippy::panic)]

use std::fs;
use std::io::{BufRead, BufReader, Read as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use tempfile::TempDir;

/// How long anything may take that is waited for.
const PATIENCE: Duration = Duration::from_secs(60);

/// The password of [`USER`].
pub const PASSWORD: &str = "correct-horse";
/// Who may use a registry with [`Access::Password`].
pub const USER: &str = "ada";
/// bcrypt of [`PASSWORD`].
const HTPASSWD: &str = "ada:$2y$05$abcdefghijklmnopqrstuuZ0Fx87Pb/Aqb0E90lfvCwzXnaFKUHpS\n";

/// Who may use a registry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    Open,
    Password,
}

/// A running docker-registry; stopped and removed on drop.
pub struct DockerRegistry {
    child: Child,
    /// `127.0.0.1:PORT`.
    pub host: String,
    dir: TempDir,
    log: Arc<Mutex<Vec<String>>>,
}

impl DockerRegistry {
    pub fn open() -> Self {
        Self::start(Access::Open, None)
    }

    pub fn start(access: Access, tls: Option<&Tls>) -> Self {
        Self::configured(access, tls, "")
    }

    /// One with more in its configuration.
    pub fn configured(access: Access, tls: Option<&Tls>, more: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut config = format!(
            "version: 0.1\n\
             log: {{level: info, accesslog: {{disabled: false}}}}\n\
             storage: {{filesystem: {{rootdirectory: {}}}}}\n\
             http:\n  addr: 127.0.0.1:0\n",
            dir.path().join("data").display()
        );
        if let Some(tls) = tls {
            config += &format!(
                "  tls: {{certificate: {}, key: {}}}\n",
                tls.certificate().display(),
                tls.key().display()
            );
        }
        if access == Access::Password {
            let path = dir.path().join("htpasswd");
            fs::write(&path, HTPASSWD).unwrap();
            config += &format!(
                "auth: {{htpasswd: {{realm: test, path: {}}}}}\n",
                path.display()
            );
        }
        config += more;
        let path = dir.path().join("config.yml");
        fs::write(&path, config).unwrap();
        let mut child = Command::new("docker-registry")
            .arg("serve")
            .arg(&path)
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/bin")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("docker-registry is installed (scripts/setup)");
        let log = Arc::new(Mutex::new(Vec::new()));
        let (told, listening) = mpsc::channel();
        let streams: [Box<dyn std::io::Read + Send>; 2] = [
            Box::new(child.stderr.take().unwrap()),
            Box::new(child.stdout.take().unwrap()),
        ];
        for stream in streams {
            let (log, told) = (Arc::clone(&log), told.clone());
            std::thread::spawn(move || {
                for line in BufReader::new(stream).lines().map_while(Result::ok) {
                    if let Some((_, rest)) = line.split_once("listening on ") {
                        let address: String = rest
                            .chars()
                            .take_while(|c| c.is_ascii_digit() || ".:".contains(*c))
                            .collect();
                        let _ = told.send(address);
                    }
                    log.lock().unwrap().push(line);
                }
            });
        }
        let host = listening.recv_timeout(PATIENCE).unwrap_or_else(|_| {
            panic!("docker-registry did not start: {:#?}", log.lock().unwrap())
        });
        Self {
            child,
            host,
            dir,
            log,
        }
    }

    /// The requests that were answered with 200, as method and path, in their order.
    pub fn served(&self) -> Vec<String> {
        let log = self.log.lock().unwrap();
        let line = |line: &String| {
            let (_, rest) = line.split_once("] \"")?;
            let (request, rest) = rest.split_once(" HTTP/")?;
            let (_, rest) = rest.split_once("\" ")?;
            rest.starts_with("200 ").then(|| request.to_owned())
        };
        log.iter().filter_map(line).collect()
    }

    /// How many requests with this method and this in their path were answered.
    pub fn count(&self, method: &str, part: &str) -> usize {
        let log = self.log.lock().unwrap();
        let request = format!("\"{method} ");
        log.iter()
            .filter(|line| {
                line.split_once(&request)
                    .and_then(|(_, rest)| rest.split(' ').next())
                    .is_some_and(|path| path.contains(part))
            })
            .count()
    }

    /// Whether the blob is on its own disk, in this repository.
    pub fn has(&self, repository: &str, digest: &str) -> bool {
        let repositories = self.dir.path().join("data/docker/registry/v2/repositories");
        let link = format!("{repository}/_layers/sha256/{digest}/link");
        // It is made empty, and written then.
        let written = fs::read_to_string(repositories.join(link));
        written.is_ok_and(|written| written == format!("sha256:{digest}"))
    }

    /// A GET of `path` by curl: body.
    pub fn get(&self, path: &str) -> Vec<u8> {
        let url = format!("http://{}/v2/{path}", self.host);
        let accept = "Accept: application/vnd.oci.image.manifest.v1+json";
        let output = Command::new("curl")
            .args([
                "-sf",
                "-u",
                &format!("{USER}:{PASSWORD}"),
                "-H",
                accept,
                &url,
            ])
            .output()
            .unwrap();
        assert!(output.status.success(), "{url}: {output:?}");
        output.stdout
    }

    pub fn json(&self, path: &str) -> serde_json::Value {
        serde_json::from_slice(&self.get(path)).unwrap()
    }
}

impl Drop for DockerRegistry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A private CA and a certificate of it for 127.0.0.1.
pub struct Tls(TempDir);

impl Tls {
    pub fn new() -> Self {
        use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
        let dir = tempfile::tempdir().unwrap();
        let ca_key = KeyPair::generate().unwrap();
        let mut ca = CertificateParams::new(Vec::new()).unwrap();
        ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca_pem = ca.self_signed(&ca_key).unwrap().pem();
        let issuer = Issuer::new(ca, ca_key);
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
        let certificate = params.signed_by(&key, &issuer).unwrap();
        fs::write(dir.path().join("ca.pem"), ca_pem).unwrap();
        fs::write(dir.path().join("cert.pem"), certificate.pem()).unwrap();
        fs::write(dir.path().join("key.pem"), key.serialize_pem()).unwrap();
        Self(dir)
    }

    pub fn ca(&self) -> PathBuf {
        self.0.path().join("ca.pem")
    }

    fn certificate(&self) -> PathBuf {
        self.0.path().join("cert.pem")
    }

    fn key(&self) -> PathBuf {
        self.0.path().join("key.pem")
    }
}

/// A home of its own, so that neither settings nor logins of this machine matter.
pub struct Home(TempDir);

impl Home {
    pub fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    pub fn path(&self) -> &Path {
        self.0.path()
    }

    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_musherfs"));
        command
            .args(arguments)
            .env_clear()
            .env("HOME", self.path())
            .env("PATH", "/usr/bin:/bin")
            .current_dir(self.path())
            .stdin(Stdio::null());
        command
    }

    pub fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// Runs a command that must succeed; its stdout.
    #[track_caller]
    pub fn ok(&self, arguments: &[&str]) -> String {
        succeeded(&self.run(arguments))
    }

    /// Runs a command that must succeed and print JSON.
    #[track_caller]
    pub fn json(&self, arguments: &[&str]) -> serde_json::Value {
        serde_json::from_str(&self.ok(arguments)).unwrap()
    }

    /// Notes a login as `docker login` does.
    pub fn docker_login(&self, host: &str) {
        // base64 of "ada:correct-horse"
        let auth = "YWRhOmNvcnJlY3QtaG9yc2U=";
        let dir = self.path().join(".docker");
        fs::create_dir_all(&dir).unwrap();
        fs::write(
            dir.join("config.json"),
            format!(r#"{{"auths":{{"{host}":{{"auth":"{auth}"}}}}}}"#),
        )
        .unwrap();
    }

    /// Writes a bundle's directory, with a `musher.yaml`.
    pub fn bundle(&self, reference: &str, files: &[(&str, &str)]) -> PathBuf {
        let (name, version) = reference.split_once('@').unwrap();
        let dir = self
            .path()
            .join(format!("{}-{version}", name.replace('/', "-")));
        let mut yaml = format!("name: {name}\nversion: {version}\ndescription: a test\nassets:\n");
        for (path, text) in files {
            yaml += &format!("  - logical_path: {path}\n");
            let path = dir.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        fs::write(dir.join("musher.yaml"), yaml).unwrap();
        dir
    }
}

/// The stdout of a command that must have succeeded.
#[track_caller]
pub fn succeeded(output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{:?}: {text}", output.status);
    String::from_utf8(output.stdout.clone()).unwrap()
}

/// Asserts a failure as everything here fails: nothing on stdout, `error:` and a `hint:`.
#[track_caller]
pub fn assert_fails(output: &Output, code: i32, message: &str) {
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{text}");
    assert!(output.stdout.is_empty(), "{output:?}");
    assert!(text.contains("error: ") && text.contains(message), "{text}");
    assert!(text.contains("hint: "), "{text}");
}

/// `oras` from PyPI, in an environment that scripts/setup makes.
pub fn oras() -> PathBuf {
    let python = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/venv/bin/python3");
    assert!(python.exists(), "{} (scripts/setup)", python.display());
    python
}

/// Pulls an artifact with the `oras` package into `dir`.
pub fn oras_pull(host: &str, name: &str, dir: &Path) {
    let program = "import sys, oras.client\n\
        client = oras.client.OrasClient(hostname=sys.argv[1], insecure=True)\n\
        client.pull(target=sys.argv[1] + '/' + sys.argv[2], outdir=sys.argv[3])";
    let output = Command::new(oras())
        .args(["-c", program, host, name])
        .arg(dir)
        .output()
        .unwrap();
    succeeded(&output);
}

/// Runs skopeo; its stdout.
#[track_caller]
pub fn skopeo(arguments: &[&str]) -> String {
    let output = Command::new("skopeo")
        .args(["--insecure-policy"])
        .args(arguments)
        .output()
        .expect("skopeo is installed (scripts/setup)");
    succeeded(&output)
}

/// Every file below `dir`, by its path.
pub fn tree(dir: &Path) -> std::collections::BTreeMap<String, Vec<u8>> {
    walkdir::WalkDir::new(dir)
        .into_iter()
        .map(Result::unwrap)
        .filter(|entry| entry.file_type().is_file())
        .map(|entry| {
            let path = entry.path().strip_prefix(dir).unwrap();
            let mut bytes = Vec::new();
            fs::File::open(entry.path())
                .unwrap()
                .read_to_end(&mut bytes)
                .unwrap();
            (path.to_str().unwrap().to_owned(), bytes)
        })
        .collect()
}
