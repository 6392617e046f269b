//! Nothing private leaks.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use crate::support::fuse::require_fuse;
use crate::support::mount::{Home, TestMount};
use crate::support::registry::{Effect, Fault, Seen, TestRegistry};

const KEY: &str = "mush_0123456789abcdef-do-not-tell";

fn private_registry() -> TestRegistry {
    let registry = TestRegistry::start_with_token(KEY);
    registry.publish_private("acme", "secret", "1.0.0", &[("a.md", b"private\n")]);
    registry.publish("acme", "open", "1.0.0", &[("a.md", b"public\n")]);
    registry
}

#[test]
fn private_bundles_need_the_key_and_public_ones_do_not() {
    if !require_fuse() {
        return;
    }
    let registry = private_registry();
    let anonymous = TestMount::of(&registry).start();
    assert_eq!(anonymous.read("acme/open/a.md"), Ok(b"public\n".to_vec()));
    for path in ["acme/secret", "acme/secret@1.0.0", "acme/secret@1.0.0/a.md"] {
        let errno = anonymous.stat(path).unwrap_err();
        assert!(
            [libc::ENOENT, libc::EACCES].contains(&errno),
            "{path}: {errno}"
        );
    }
    assert!(!anonymous.names("acme").concat().contains("secret"));
    anonymous.unmount();

    let stranger = TestMount::of(&registry)
        .env("MUSHER_API_KEY", "mush_wrong")
        .start();
    let errno = stranger.stat("acme/secret@1.0.0").unwrap_err();
    assert!([libc::ENOENT, libc::EACCES].contains(&errno), "{errno}");
    assert_eq!(stranger.read("acme/open/a.md"), Ok(b"public\n".to_vec()));
    stranger.unmount();

    let holder = TestMount::of(&registry).env("MUSHER_API_KEY", KEY).start();
    assert_eq!(holder.read("acme/secret/a.md"), Ok(b"private\n".to_vec()));
    assert_eq!(holder.read("acme/open/a.md"), Ok(b"public\n".to_vec()));
    assert!(holder.names("acme").contains(&"secret@1.0.0".to_owned()));
    holder.unmount();
}

#[test]
fn the_key_is_found_where_the_other_tools_put_it_and_in_a_file_of_its_own() {
    if !require_fuse() {
        return;
    }
    let registry = private_registry();
    let with_mode = |path: &std::path::Path, mode| {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, format!("{KEY}\n")).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    };
    let home = Home::new();
    let shared = home
        .path()
        .join("data/credentials")
        .join(registry.host_id())
        .join("api-key");
    with_mode(&shared, 0o600);
    let mount = TestMount::of(&registry).home(&home).start();
    assert_eq!(mount.read("acme/secret/a.md"), Ok(b"private\n".to_vec()));
    mount.unmount();

    // Readable by others, it is as if it was not there.
    let home = Home::new();
    let shared = home
        .path()
        .join("data/credentials")
        .join(registry.host_id())
        .join("api-key");
    with_mode(&shared, 0o644);
    let mount = TestMount::of(&registry).home(&home).start();
    assert!(mount.stat("acme/secret@1.0.0").is_err());
    mount.unmount();

    let home = Home::new();
    let file = home.path().join("key");
    with_mode(&file, 0o400);
    let option = format!("api_key_file={}", file.display());
    let mount = TestMount::of(&registry)
        .home(&home)
        .args(&["-o", &option])
        .start();
    assert_eq!(mount.read("acme/secret/a.md"), Ok(b"private\n".to_vec()));
}

#[test]
fn the_key_is_in_no_log_no_file_and_no_list_of_processes() {
    if !require_fuse() {
        return;
    }
    let registry = private_registry();
    // A server that tells everything it was told.
    let echo = format!("{{\"detail\": \"your key {KEY} is not good enough\", \"status\": 403}}");
    registry.fault(
        Fault::new(Effect::Body(
            403,
            "application/problem+json",
            echo.into_bytes(),
        ))
        .path_contains("echo")
        .when(Seen::is_authorized),
    );
    registry.fault(Fault::new(Effect::Status(403)).path_contains("echo"));
    let mount = TestMount::of(&registry)
        .env("MUSHER_API_KEY", KEY)
        .env("RUST_LOG", "trace")
        .arg("-vv")
        .start();
    assert_eq!(mount.read("acme/secret/a.md"), Ok(b"private\n".to_vec()));
    assert_eq!(mount.stat("acme/echo@1.0.0").unwrap_err(), libc::EACCES);
    assert_eq!(mount.stat("echo@x/echo").unwrap_err(), libc::ENOENT);
    let command_line = fs::read(format!("/proc/{}/cmdline", mount.pid())).unwrap();
    assert!(!String::from_utf8_lossy(&command_line).contains(KEY));
    assert!(!mount.status().to_string().contains(KEY));
    let log = mount.log();
    assert!(
        log.contains("403 Forbidden") || log.contains("status=403"),
        "it says a lot: {log}"
    );
    assert!(!log.contains(KEY), "{log}");
    let home = mount.home().clone();
    mount.unmount();
    let mut files = 0;
    for entry in walkdir::WalkDir::new(home.path()) {
        let entry = entry.unwrap();
        if entry.file_type().is_file() {
            let bytes = fs::read(entry.path()).unwrap();
            let holds = bytes
                .windows(KEY.len())
                .any(|window| window == KEY.as_bytes());
            assert!(!holds, "{}", entry.path().display());
            files += 1;
        }
    }
    assert!(files > 3, "there is a cache and a journal");
}

#[test]
fn a_redirect_does_not_carry_the_key_to_another_host() {
    if !require_fuse() {
        return;
    }
    let registry = private_registry();
    let other = TestRegistry::start();
    other.publish("acme", "secret", "1.0.0", &[("a.md", b"theirs!\n")]);
    let mount = TestMount::of(&registry)
        .env("MUSHER_API_KEY", KEY)
        .arg("--readahead=0")
        .start();
    assert_eq!(
        mount.stat("acme/secret@1.0.0/a.md").map(|meta| meta.len()),
        Ok(8)
    );
    let target = format!(
        "{}/v1/hub/bundles/acme/secret/assets/a.md?version=1.0.0",
        other.url()
    );
    registry.fault(Fault::new(Effect::Redirect(target)).on_content());
    // Other bytes, from another host: refused for what they are.
    let read = mount.read("acme/secret@1.0.0/a.md");
    crate::support::mount::assert_read_fails(read, libc::EIO, "bytes of another host");
    assert!(other.requests() > 0, "the redirect was followed");
    for seen in other.log() {
        assert!(!seen.is_authorized(), "{seen:?}");
    }
    assert!(registry.log().iter().any(|seen| seen.is_authorized()));
}
