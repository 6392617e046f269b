//! Mounts of what other people run: Debian's docker-registry in four ways, as a pull-through cache,
//! and behind nginx.

#![allow(clippy::unwrap_used, clippy::panic, unreachable_pub)]

#[path = "../push_harness/mod.rs"]
mod push_harness;
#[path = "../support/mod.rs"]
mod support;
mod tokens;

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use push_harness::{
    Access, DockerRegistry, Home as Publisher, PASSWORD, Tls, USER, oras, succeeded,
};
use support::fuse::require_fuse;
use support::mount::{Home, Mounting, TestMount, eventually, run};
use tokens::TokenServer;

const FILES: &[(&str, &str)] = &[
    ("prompts/review.md", "Review this.\n"),
    ("prompts/same.md", "Review this.\n"),
    ("skills/über/SKILL.md", "# ü\n"),
    ("empty", ""),
    ("README.md", "A kit.\n"),
];

/// Notes a login as `docker login` does.
fn log_in(home: &Home, host: &str) {
    let dir = home.path().join(".docker");
    fs::create_dir_all(&dir).unwrap();
    // base64 of the harness' user and password.
    let auth = "YWRhOmNvcnJlY3QtaG9yc2U=";
    assert_eq!((USER, PASSWORD), ("ada", "correct-horse"));
    let json = format!(r#"{{"auths":{{"{host}":{{"auth":"{auth}"}}}}}}"#);
    fs::write(dir.join("config.json"), json).unwrap();
}

/// Publishes [`FILES`] and returns where they are on disk.
fn publish(publisher: &Publisher, host: &str, more: &[&str]) -> std::path::PathBuf {
    let dir = publisher.bundle("acme/kit@1.2.0", FILES);
    let mut arguments = vec!["publish", dir.to_str().unwrap(), "--oci", host];
    arguments.extend(more);
    publisher.ok(&arguments);
    fs::remove_file(dir.join("musher.yaml")).unwrap();
    dir
}

fn assert_same(dir: &Path, mount: &TestMount, below: &str) {
    let mounted = mount.path(below);
    run(
        "diff",
        ["-r", dir.to_str().unwrap(), mounted.to_str().unwrap()],
    );
}

/// Mounting without read-ahead, so that requests can be counted.
fn of(host: &str) -> Mounting {
    TestMount::of_oci(host).arg("--readahead=0")
}

#[test]
fn what_is_published_to_an_open_registry_is_mounted_as_it_was() {
    if !require_fuse() {
        return;
    }
    let registry = DockerRegistry::open();
    let publisher = Publisher::new();
    let dir = publish(&publisher, &registry.host, &["--tag", "stable"]);
    let mount = of(&registry.host).start();
    for name in [
        "acme/kit/",
        "acme/kit@1.2.0",
        "acme/kit@stable/",
        "acme/kit@^1/",
    ] {
        assert_same(&dir, &mount, name);
    }
    // This registry tells what it has.
    assert_eq!(mount.names(""), ["acme"]);
    assert_eq!(mount.names("acme"), ["kit", "kit@1.2.0"]);
    assert_eq!(mount.stat("acme/none").unwrap_err(), libc::ENOENT);
}

#[test]
fn a_registry_behind_a_password_and_a_private_ca_is_mounted_with_dockers_login() {
    if !require_fuse() {
        return;
    }
    let tls = Tls::new();
    let registry = DockerRegistry::start(Access::Password, Some(&tls));
    let host = format!("https://{}", registry.host);
    let publisher = Publisher::new();
    publisher.docker_login(&registry.host);
    let ca = tls.ca().to_str().unwrap().to_owned();
    let dir = publish(&publisher, &host, &["--ca-file", &ca]);

    let home = Home::new();
    log_in(&home, &registry.host);
    let mount = of(&host).home(&home).args(&["--ca-file", &ca]).start();
    assert_same(&dir, &mount, "acme/kit/");
    mount.unmount();

    let nobody = of(&host).args(&["--ca-file", &ca]).start();
    let read = nobody.read("acme/kit@1.2.0/empty");
    assert_eq!(read.unwrap_err(), libc::EACCES);
    // Without its certificate the registry could be anybody.
    let blind = of(&host).start();
    let read = blind.read("acme/kit@1.2.0/empty");
    assert_eq!(read.unwrap_err(), libc::EHOSTUNREACH);
}

#[test]
fn walking_two_thousand_files_costs_a_token_a_list_a_manifest_and_a_config() {
    if !require_fuse() {
        return;
    }
    let tokens = TokenServer::start("Basic YWRhOmNvcnJlY3QtaG9yc2U=");
    let registry = DockerRegistry::configured(Access::Open, None, &tokens.config());
    let publisher = Publisher::new();
    publisher.docker_login(&registry.host);
    let contents: Vec<(String, String)> = (0..2000)
        .map(|i| (format!("skills/{}/{i}.md", i % 40), format!("file {i}\n")))
        .collect();
    let files: Vec<(&str, &str)> = contents
        .iter()
        .map(|(path, text)| (path.as_str(), text.as_str()))
        .collect();
    let dir = publisher.bundle("acme/kit@1.0.0", &files);
    publisher.ok(&["publish", dir.to_str().unwrap(), "--oci", &registry.host]);
    fs::remove_file(dir.join("musher.yaml")).unwrap();

    let home = Home::new();
    log_in(&home, &registry.host);
    // What was logged before is the publisher's.
    let (served, issued) = (registry.served().len(), tokens.issued().len());
    let mount = of(&registry.host).home(&home).start();
    let walk = |mount: &TestMount| {
        let found = run(
            "find",
            [mount.path("acme/kit/").to_str().unwrap(), "-type", "f"],
        );
        assert_eq!(found.lines().count(), 2000);
    };
    walk(&mount);
    let gets = |wanted: usize| {
        let seen = eventually("the registry's access log", || {
            let all = registry.served().split_off(served);
            let gets: Vec<_> = all
                .into_iter()
                .filter(|line| line.starts_with("GET "))
                .collect();
            (gets.len() >= wanted).then_some(gets)
        });
        assert_eq!(seen.len(), wanted, "{seen:#?}");
        seen
    };
    let asked = gets(3);
    for part in ["/tags/list", "/manifests/1.0.0", "/blobs/sha256:"] {
        let count = asked.iter().filter(|line| line.contains(part)).count();
        assert_eq!(count, 1, "{part}: {asked:?}");
    }
    assert_eq!(tokens.issued()[issued..], ["repository:acme/kit:pull"]);

    for (path, text) in &contents[..3] {
        let read = mount.read(&format!("acme/kit/{path}")).unwrap();
        assert_eq!(read, text.as_bytes());
    }
    gets(6);
    mount.unmount();

    let again = of(&registry.host).home(&home).start();
    walk(&again);
    for (path, text) in &contents[..3] {
        let read = again.read(&format!("acme/kit/{path}")).unwrap();
        assert_eq!(read, text.as_bytes());
    }
    gets(6);
    assert_eq!(tokens.issued().len(), issued + 1);
    assert_same(&dir, &again, "acme/kit/");
}

#[test]
fn what_oras_pushes_is_mounted_file_by_file_and_directory_by_directory() {
    if !require_fuse() {
        return;
    }
    let registry = DockerRegistry::open();
    let scratch = tempfile::tempdir().unwrap();
    for (path, text) in FILES {
        let path = scratch.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    let program = "import sys, oras.client\n\
        client = oras.client.OrasClient(hostname=sys.argv[1], insecure=True)\n\
        client.push(target=sys.argv[1] + '/' + sys.argv[2], files=sys.argv[3:])";
    let push = |name: &str, files: &[&str]| {
        let output = Command::new(oras())
            .current_dir(scratch.path())
            .args(["-c", program, registry.host.as_str(), name])
            .args(files)
            .output()
            .unwrap();
        succeeded(&output);
    };
    // The package calls a file by the last component of its path, a directory's by the whole.
    push(
        "acme/files:1.0.0",
        &["skills/über/SKILL.md", "empty", "README.md"],
    );
    let all = ["prompts", "skills", "empty", "README.md"];
    push("acme/dirs:1.0.0", &all);
    let mount = of(&registry.host).start();
    assert_same(scratch.path(), &mount, "acme/dirs/");
    assert_eq!(
        mount.names("acme/files/"),
        ["README.md", "SKILL.md", "empty"]
    );
    let read = mount.read("acme/files/SKILL.md").unwrap();
    assert_eq!(read, "# ü\n".as_bytes());
}

#[test]
fn what_oras_pushes_with_a_bundles_config_has_the_paths_and_types_of_the_config() {
    if !require_fuse() {
        return;
    }
    let registry = DockerRegistry::open();
    let scratch = tempfile::tempdir().unwrap();
    let text = FILES[0].1;
    let assets: Vec<_> = ["prompts/one.md", "über/two.md"]
        .map(|path| {
            serde_json::json!({"logical_path": path, "asset_type": "prompt",
                "content_sha256": musherfs::digest::Digest::of(text.as_bytes()).hex()})
        })
        .into();
    let config = serde_json::json!({ "assets": assets }).to_string();
    fs::write(scratch.path().join("bundle.json"), config).unwrap();
    fs::write(scratch.path().join("any-name"), text).unwrap();
    let program = "import sys, oras.client\n\
        client = oras.client.OrasClient(hostname=sys.argv[1], insecure=True)\n\
        client.push(target=sys.argv[1] + '/acme/kit:1.0.0', files=['any-name'],\n\
            manifest_config='bundle.json:application/vnd.musher.bundle.v1.config')";
    let output = Command::new(oras())
        .current_dir(scratch.path())
        .args(["-c", program, registry.host.as_str()])
        .output()
        .unwrap();
    succeeded(&output);
    let mount = of(&registry.host).start();
    assert_eq!(mount.names("acme/kit/"), ["prompts", "über"]);
    for path in ["acme/kit/prompts/one.md", "acme/kit/über/two.md"] {
        assert_eq!(mount.read(path).unwrap(), text.as_bytes());
    }
}

/// Reads through `mirror`, then again with the origin gone and the file lost, once the mirror has the
/// blob with this digest, as hexadecimal digits, for itself.
fn survives_its_origin(origin: DockerRegistry, mirror: &str, has: impl Fn(&str) -> bool) {
    let publisher = Publisher::new();
    publish(&publisher, &origin.host, &[]);
    let home = Home::new();
    let host = origin.host.clone();
    let mounting = || of(&host).home(&home).args(&["--mirror", mirror]);
    let (path, text) = FILES[0];
    let path = format!("acme/kit@1.2.0/{path}");
    let mount = mounting().start();
    assert_eq!(mount.read(&path).unwrap(), text.as_bytes());
    mount.unmount();

    let digest = musherfs::digest::Digest::of(text.as_bytes()).hex();
    eventually("the mirror's own copy", || has(&digest).then_some(()));
    drop(origin);
    fs::remove_file(home.blob(text.as_bytes())).unwrap();
    let mount = mounting().start();
    assert_eq!(mount.read(&path).unwrap(), text.as_bytes());
}

#[test]
fn a_pull_through_cache_is_a_mirror() {
    if !require_fuse() {
        return;
    }
    let origin = DockerRegistry::open();
    let remote = format!("proxy: {{remoteurl: \"http://{}\"}}\n", origin.host);
    let cache = DockerRegistry::configured(Access::Open, None, &remote);
    // It answers before it has stored what it passes on.
    survives_its_origin(origin, &cache.host, |digest| cache.has("acme/kit", digest));
    assert!(
        cache
            .served()
            .iter()
            .any(|line| line.contains("/blobs/sha256:"))
    );
}

/// nginx that keeps what it has fetched; stopped on drop.
struct Nginx {
    child: Child,
    port: u16,
    _dir: tempfile::TempDir,
}

impl Nginx {
    /// In front of `upstream`.
    fn start(upstream: &str) -> Self {
        // Between finding a free port and nginx taking it, somebody else may have it.
        for _ in 0..5 {
            let port = TcpListener::bind("127.0.0.1:0")
                .unwrap()
                .local_addr()
                .unwrap()
                .port();
            let dir = tempfile::tempdir().unwrap();
            let place = dir.path().display();
            let config = format!(
                "daemon off; pid {place}/pid; error_log stderr; worker_processes 1;\n\
                 events {{}}\n\
                 http {{ access_log off; client_body_temp_path {place}/body;\n\
                 proxy_temp_path {place}/temp; fastcgi_temp_path {place}/f;\n\
                 uwsgi_temp_path {place}/u; scgi_temp_path {place}/s;\n\
                 proxy_cache_path {place}/cache keys_zone=content:1m max_size=1g inactive=30d;\n\
                 server {{ listen 127.0.0.1:{port};\n\
                 location ~ ^/v2/.+/blobs/sha256: {{ proxy_pass http://{upstream};\n\
                 proxy_cache content; proxy_cache_key $uri; proxy_cache_valid 200 30d;\n\
                 proxy_cache_lock on; proxy_set_header Host $http_host; }}\n\
                 location / {{ return 404; }} }} }}\n"
            );
            let path = dir.path().join("nginx.conf");
            fs::write(&path, config).unwrap();
            let mut child = Command::new("/usr/sbin/nginx")
                .args(["-e", "stderr", "-c"])
                .arg(&path)
                .stdin(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .expect("nginx is installed (scripts/setup)");
            let up = eventually("nginx", || {
                if child.try_wait().unwrap().is_some() {
                    return Some(false);
                }
                TcpStream::connect(("127.0.0.1", port))
                    .is_ok()
                    .then_some(true)
            });
            if up {
                return Self {
                    child,
                    port,
                    _dir: dir,
                };
            }
        }
        panic!("nginx does not start");
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        // The master must end its workers itself.
        let pid = rustix::process::Pid::from_child(&self.child);
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        let _ = self.child.wait();
    }
}

#[test]
fn nginx_in_front_of_a_registry_is_a_mirror() {
    if !require_fuse() {
        return;
    }
    let origin = DockerRegistry::open();
    let nginx = Nginx::start(&origin.host);
    let mirror = format!("http://127.0.0.1:{}", nginx.port);
    survives_its_origin(origin, &mirror, |_| true);
}

#[test]
fn publishing_behind_a_token_server_asks_for_what_it_needs_and_no_more() {
    let tokens = TokenServer::start("Basic YWRhOmNvcnJlY3QtaG9yc2U=");
    let registry = DockerRegistry::configured(Access::Open, None, &tokens.config());
    let publisher = Publisher::new();
    let base = publisher.bundle("acme/base@1.0.0", FILES);
    let arguments = ["publish", base.to_str().unwrap(), "--oci", &registry.host];
    push_harness::assert_fails(&publisher.run(&arguments), 2, "503");
    assert_eq!(tokens.issued(), [""; 0]);

    publisher.docker_login(&registry.host);
    publisher.ok(&arguments);
    let issued = tokens.issued();
    assert!(!issued.is_empty());
    for scope in &issued {
        assert_eq!(scope, "repository:acme/base:pull,push");
    }
    // A second token is for taking blobs of the first repository, not for writing there.
    let kit = publisher.bundle("acme/kit@1.0.0", FILES);
    let from = ["--mount-from", "acme/base", "--json"];
    let arguments = ["publish", kit.to_str().unwrap(), "--oci", &registry.host];
    let published = publisher.json(&[&arguments[..], &from[..]].concat());
    assert_eq!(published["blobsUploaded"], 0, "{published}");
    let mut scopes = tokens.issued().split_off(issued.len());
    scopes.sort();
    scopes.dedup();
    assert_eq!(
        scopes,
        ["repository:acme/base:pull", "repository:acme/kit:pull,push"]
    );
}
