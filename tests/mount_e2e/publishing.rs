//! A registry of one's own, from publishing to reading: only commands, and the mount.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Stdio};
use std::sync::Arc;

use serde_json::Value;

use crate::support::fuse::require_fuse;
use crate::support::mount::{Home, TestMount, said, succeed};

/// `musherfs registry serve`, until it is dropped.
struct Serving {
    child: Child,
    url: String,
}

impl Serving {
    fn start(home: &Home, root: &Path, args: &[&str]) -> Self {
        let mut command = home.command(["registry", "serve", "--listen", "127.0.0.1:0", "--root"]);
        let mut child = command
            .arg(root)
            .args(args)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        stdout.read_line(&mut line).unwrap();
        let url = line
            .trim()
            .strip_prefix("listening on ")
            .unwrap()
            .to_owned();
        Self { child, url }
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn write(dir: &Path, files: &[(&str, &str)]) {
    for (path, text) in files {
        let path = dir.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
}

fn musher_yaml(version: &str) -> String {
    format!(
        "kind: bundle\nnamespace: acme\nslug: kit\nversion: {version}\nname: Kit\n\
         description: For tests\nreadme: README.md\nlicense: MIT\nvisibility: public\n\
         assets:\n  - id: a\n    src: prompts/a.md\n  - id: readme\n    src: README.md\n    kind: config\n"
    )
}

#[test]
fn what_is_published_is_mounted_and_what_is_yanked_is_withdrawn() {
    if !require_fuse() {
        return;
    }
    let home: Arc<Home> = Home::new();
    let root = home.path().join("registry");
    let bundle = home.path().join("bundle");
    let registry = |action: &str, rest: &[&str]| {
        let mut command = home.command(["registry", action, "--root"]);
        command.arg(&root).args(rest);
        command
    };
    let bundle_arg = bundle.to_str().unwrap();
    for version in ["1.0.0", "1.1.0"] {
        let prompt = format!("version {version}\n");
        let yaml = musher_yaml(version);
        write(
            &bundle,
            &[
                ("musher.yaml", &yaml),
                ("prompts/a.md", &prompt),
                ("README.md", "# Kit\n"),
            ],
        );
        let printed = succeed(&mut registry("publish", &[bundle_arg]));
        assert_eq!(printed, format!("acme/kit@{version}\n"));
    }
    write(&bundle, &[("prompts/a.md", "other content\n")]);
    let output = registry("publish", &[bundle_arg]).output().unwrap();
    assert_eq!(
        output.status.code(),
        Some(1),
        "a version only once: {}",
        said(&output)
    );
    assert!(said(&output).contains("1.1.0"), "{}", said(&output));

    let serving = Serving::start(&home, &root, &[]);
    let mount = TestMount::of_url(&serving.url).start();
    assert_eq!(mount.names("acme"), ["kit", "kit@1.0.0", "kit@1.1.0"]);
    assert_eq!(
        mount.read("acme/kit/prompts/a.md"),
        Ok(b"version 1.1.0\n".to_vec())
    );
    mount.unmount();

    // The registry notices what commands do to its directory.
    succeed(&mut registry(
        "yank",
        &["acme/kit@1.1.0", "--reason", "wrong prompt"],
    ));
    let listed: Value = serde_json::from_str(&succeed(&mut registry("list", &["--json"]))).unwrap();
    let mut states: Vec<_> = listed
        .as_array()
        .unwrap()
        .iter()
        .map(|row| format!("{} {}", row["version"], row["state"]))
        .collect();
    states.sort();
    assert_eq!(states, [r#""1.0.0" "published""#, r#""1.1.0" "yanked""#]);
    let table = succeed(&mut registry("list", &[]));
    assert!(
        table.contains("acme/kit") && table.contains("yanked"),
        "{table}"
    );
    let mount = TestMount::of_url(&serving.url).start();
    assert_eq!(mount.readlink("acme/kit").as_deref(), Ok("kit@1.0.0"));
    assert_eq!(mount.names("acme"), ["kit", "kit@1.0.0"]);
    assert_eq!(
        mount.read("acme/kit@1.1.0/prompts/a.md"),
        Ok(b"version 1.1.0\n".to_vec())
    );
    mount.unmount();

    succeed(&mut registry("unyank", &["acme/kit@1.1.0"]));
    let mount = TestMount::of_url(&serving.url).start();
    assert_eq!(mount.readlink("acme/kit").as_deref(), Ok("kit@1.1.0"));
    mount.unmount();
}

#[test]
fn a_registry_with_a_token_serves_private_bundles_to_its_holder() {
    if !require_fuse() {
        return;
    }
    let home = Home::new();
    let root = home.path().join("registry");
    let bundle = home.path().join("bundle");
    let yaml = musher_yaml("1.0.0").replace("visibility: public", "visibility: private");
    write(
        &bundle,
        &[
            ("musher.yaml", &yaml),
            ("prompts/a.md", "private\n"),
            ("README.md", "# Kit\n"),
        ],
    );
    let mut publish = home.command(["registry", "publish", "--root"]);
    succeed(publish.arg(&root).arg(&bundle));
    let serving = Serving::start(&home, &root, &["--token", "mush_t0ken", "--samples"]);

    let mount = TestMount::of_url(&serving.url)
        .env("MUSHER_API_KEY", "mush_t0ken")
        .start();
    assert_eq!(
        mount.read("acme/kit/prompts/a.md"),
        Ok(b"private\n".to_vec())
    );
    assert!(mount.names("acme").contains(&"code-review".to_owned()));
    // The key's identity tells the root what there is.
    assert!(mount.names("").contains(&"acme".to_owned()));
    mount.unmount();

    let mount = TestMount::of_url(&serving.url).start();
    assert!(mount.stat("acme/kit@1.0.0").is_err());
    assert!(mount.stat("acme/code-review").is_ok());
    mount.unmount();
}
