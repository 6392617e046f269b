//! A registry that this project did not write: another language, another author, the least of the
//! protocol.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};

use crate::support::fuse::require_fuse;
use crate::support::mount::{Home, TestMount, run};

struct Foreign {
    child: Child,
    url: String,
    requests: Arc<Mutex<Vec<String>>>,
}

impl Foreign {
    fn start(root: &std::path::Path) -> Self {
        let program = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/tests/fixtures/foreign_registry.py"
        );
        let mut child = Command::new("python3")
            .args([program.as_ref(), root.as_os_str()])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let port = lines.next().unwrap().unwrap();
        let requests = Arc::<Mutex<Vec<String>>>::default();
        let log = Arc::clone(&requests);
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                log.lock().unwrap().push(line);
            }
        });
        Self {
            child,
            url: format!("http://127.0.0.1:{port}"),
            requests,
        }
    }
}

impl Drop for Foreign {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_registry_that_this_project_did_not_write_is_mounted() {
    if !require_fuse() {
        return;
    }
    let tree = tempfile::tempdir().unwrap();
    for (path, text) in [
        ("acme/kit/1.0.0/prompts/a.md", "old\n"),
        ("acme/kit/1.2.0/prompts/a.md", "new\n"),
        ("acme/kit/1.2.0/prompts/grüße.md", "grüß dich\r\n"),
        ("acme/kit/1.2.0/no-newline", "x"),
        (
            "acme/kit/1.2.0/{json}.json",
            "{\"contentText\": \"not the content\"}\n",
        ),
        ("acme/kit/1.2.0/a b+c%20.md", "awkward\n"),
    ] {
        let path = tree.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    let foreign = Foreign::start(tree.path());
    let home = Home::new();
    let mount = TestMount::of_url(&foreign.url).home(&home).start();
    assert_eq!(mount.read("acme/kit/prompts/a.md"), Ok(b"new\n".to_vec()));
    assert_eq!(mount.readlink("acme/kit").as_deref(), Ok("kit@1.2.0"));
    for version in ["1.0.0", "1.2.0"] {
        let original = tree.path().join("acme/kit").join(version);
        let mounted = mount.path(&format!("acme/kit@{version}"));
        assert_eq!(
            run(
                "diff",
                ["-r".as_ref(), original.as_os_str(), mounted.as_os_str()]
            ),
            ""
        );
    }
    assert_eq!(mount.stat("acme/kit@9.0.0").unwrap_err(), libc::ENOENT);
    assert_eq!(mount.stat("acme/nothing").unwrap_err(), libc::ENOENT);
    let requests = foreign.requests.lock().unwrap().clone();
    let pulls = requests
        .iter()
        .filter(|line| line.contains(":pull"))
        .count();
    assert!((2..=4).contains(&pulls), "{requests:#?}");
    mount.unmount();

    // Gone, it is not missed.
    let url = foreign.url.clone();
    drop(foreign);
    let mount = TestMount::of_url(&url).home(&home).start();
    let original = tree.path().join("acme/kit/1.2.0");
    let mounted = mount.path("acme/kit/.");
    assert_eq!(
        run(
            "diff",
            ["-r".as_ref(), original.as_os_str(), mounted.as_os_str()]
        ),
        ""
    );
    assert_eq!(mount.names("acme"), ["kit", "kit@1.0.0", "kit@1.2.0"]);
    mount.unmount();
}
