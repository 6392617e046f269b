//! An upgrade that is broken off in the middle: by the keeper's end, by that of the new daemon.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::Signal;

use super::keeper_harness::house::{House, await_end, await_some, can_mount, kill};
use super::keeper_harness::readers::{finish_all, start_many};
use super::support::fuse::require_program;
use super::{seed, text, warm};

/// The children of a process that have a FUSE device open.
fn holders(parent: u32) -> Vec<u32> {
    let children = fs::read_to_string(format!("/proc/{parent}/task/{parent}/children"));
    let children = children.unwrap_or_default();
    let has_device = |id: &u32| {
        let entries = fs::read_dir(format!("/proc/{id}/fd"));
        let entries = entries.into_iter().flatten().flatten();
        let mut targets = entries.filter_map(|entry| fs::read_link(entry.path()).ok());
        targets.any(|target| target == Path::new("/dev/fuse"))
    };
    let ids = children.split_whitespace().map(|id| id.parse().unwrap());
    ids.filter(has_device).collect()
}

#[test]
fn a_keeper_that_is_killed_in_an_upgrade_leaves_one_daemon_that_serves() {
    if !can_mount() {
        return;
    }
    // Before the former daemon is told to retire, while it should, and when the keeper has given it up.
    for pause in [0, 100, 3_000].map(Duration::from_millis) {
        let house = House::new();
        house.mount();
        let kept = house.kept();
        let former = kept.daemon.unwrap();
        kill(former, Signal::STOP);
        let mut upgrade = house
            .command(["upgrade"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let next = await_some("a daemon that stands by", || {
            holders(kept.keeper).into_iter().find(|id| *id != former)
        });
        std::thread::sleep(pause);
        kill(kept.keeper, Signal::KILL);
        await_end(kept.keeper);
        upgrade.wait().unwrap();
        // Not if it was killed meanwhile.
        let _ =
            rustix::process::kill_process(super::keeper_harness::house::pid(former), Signal::CONT);
        let (path, bytes) = house.file(1);
        assert_eq!(fs::read(path).unwrap(), bytes, "{pause:?}");
        if !pause.is_zero() {
            await_end(former);
            let (path, bytes) = house.file(2);
            assert_eq!(fs::read(path).unwrap(), bytes, "{pause:?}");
        }
        let output = house.run(["umount", house.dir.to_str().unwrap()]);
        assert!(output.status.success(), "{}", text(&output.stderr));
        // Also whoever only stands by.
        await_end(former);
        await_end(next);
        assert!(!house.is_mounted());
    }
}

/// A program that says that it is prepared, hears `words` words from its keeper, and ends.
fn program_that_gives_up(dir: &Path, stands_by: bool, words: usize) -> PathBuf {
    let path = dir.join(format!("gives-up-{stands_by}-{words}"));
    let source = format!(
        r#"#include <unistd.h>
        static const char prepared[] = "{{\"prepared\":{{\"version\":\"0\",\"stands_by\":{stands_by}}}}}";
        int main(void) {{
            char word[65536];
            write(0, prepared, sizeof prepared - 1);
            /* The greeting is one, too. */
            for (int i = 0; i <= {words}; i++) read(0, word, sizeof word);
            return 1;
        }}"#
    );
    let mut compiler = Command::new("cc")
        .args(["-w", "-x", "c", "-o"])
        .args([path.as_os_str(), "-".as_ref()])
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = compiler.stdin.take().unwrap();
    stdin.write_all(source.as_bytes()).unwrap();
    drop(stdin);
    assert!(compiler.wait().unwrap().success());
    path
}

#[test]
fn a_program_that_gives_up_when_it_should_serve_is_replaced_by_the_former_one() {
    if !can_mount() || !require_program("cc") {
        return;
    }
    let house = House::new();
    house.mount();
    warm(&house);
    let readers = start_many(&house, 4, seed());
    // It ends when it has the mount; before it stands by; when it does; and when it should serve.
    for (stands_by, words) in [(false, 1), (true, 0), (true, 2), (true, 3)] {
        let program = program_that_gives_up(house.home.path(), stands_by, words);
        let began = Instant::now();
        let output = house.run(["upgrade", "--program", program.to_str().unwrap()]);
        assert!(!output.status.success(), "{stands_by} {words}");
        let message = text(&output.stderr);
        assert!(message.contains("is not upgraded"), "{message}");
        assert!(began.elapsed() < Duration::from_secs(60));
        // Whoever serves now is the program that did before.
        let daemon = house.daemon();
        let runs = fs::read_link(format!("/proc/{daemon}/exe")).unwrap();
        assert_ne!(runs, program);
        let (path, bytes) = house.file(3);
        assert_eq!(fs::read(path).unwrap(), bytes, "{stands_by} {words}");
    }
    let seen = finish_all(readers);
    assert!(seen.wrong.is_empty(), "{:?}", seen.wrong);
    assert!(seen.operations > 0);
}
