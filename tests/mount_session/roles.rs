//! What this test program does when other tests start it again: with a role in its environment,
//! it runs only `process_entry`.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use musherfs::mount::background::Starter;
use musherfs::mount::mountinfo::MountTable;
use musherfs::mount::{
    Ending, How, MountError, MountOptions, MountPoint, StopSignals, mount, mount_and_serve, serve,
    stay, touch, unmount_command,
};

use crate::harness::{DEADLINE, User, cat, fs_types, names, runtime};
use crate::tiny::{HELLO, Tiny};

pub(crate) const ROLE: &str = "MUSHERFS_TEST_ROLE";
pub(crate) const DIR: &str = "MUSHERFS_TEST_DIR";
/// Where root has mounted, for a plain user to try.
pub(crate) const ROOTS: &str = "MUSHERFS_TEST_ROOTS";
pub(crate) const NOBODY: u32 = 65534;

/// This program again, to run `process_entry` in a role.
pub(crate) fn this_test(role: &str, dir: &Path) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.env(ROLE, role).env(DIR, dir);
    command
}

pub(crate) const ENTRY: [&str; 5] = [
    "--ignored",
    "--exact",
    "roles::process_entry",
    "--nocapture",
    "--test-threads=1",
];

#[test]
#[ignore = "what the processes run that other tests start"]
fn process_entry() {
    let (Ok(role), Some(dir)) = (std::env::var(ROLE), std::env::var_os(DIR)) else {
        return;
    };
    let dir = PathBuf::from(dir);
    let code = match role.as_str() {
        "daemon" => daemon(&dir),
        "mute daemon" => {
            let starter = Starter::take_over().unwrap();
            let point = MountPoint::prepare(&dir).unwrap();
            let mounted = mount(&point, &MountOptions::default()).unwrap();
            starter.ready(&mounted).unwrap();
            loop {
                std::thread::park();
            }
        }
        "touch" => {
            let args: Vec<OsString> = std::env::args_os().collect();
            let at = args.iter().position(|a| a == touch::SUBCOMMAND).unwrap();
            i32::from(touch::warm_up(Path::new(&args[at + 1])).is_err())
        }
        "plain user" => plain_user(&dir),
        other => panic!("no role {other:?}"),
    };
    std::process::exit(code);
}

fn daemon(dir: &Path) -> i32 {
    let starter = Starter::take_over().unwrap();
    let runtime = runtime();
    let _context = runtime.enter();
    let mut signals = StopSignals::listen(true).unwrap();
    let served = MountPoint::prepare(dir)
        .and_then(|point| mount_and_serve(&point, &MountOptions::default(), Tiny::default(), 2));
    match served {
        Err(error) => {
            starter.failed((&error).into()).unwrap();
            i32::from(error.exit_code())
        }
        Ok((mounted, serving)) => {
            starter.ready(&mounted).unwrap();
            // The exit code tells the test how it ended.
            match runtime.block_on(stay(mounted, &serving, &mut signals)) {
                Ok(Ending::Unmounted) => 0,
                Ok(Ending::UnmountedOutside) => 20,
                Ok(Ending::Detached(holders)) => 30 + i32::try_from(holders.len()).unwrap(),
                Err(_) => 40,
                Ok(Ending::Retired) => 50,
            }
        }
    }
}

/// Runs as `nobody`, with a `/dev/fuse` that everyone may open, in a mount namespace of its own.
fn plain_user(base: &Path) -> i32 {
    assert!(!rustix::process::geteuid().is_root());
    let home = base.join("home");
    let dir = home.join("mnt");
    let options = MountOptions {
        source: "https://registry.example/a,b".to_owned(),
        ..MountOptions::default()
    };

    let point = MountPoint::prepare(&dir).unwrap();
    let mounted = mount(&point, &options).unwrap();
    let serving = serve(&mounted, Tiny::default(), 2).unwrap();
    assert_eq!(cat(dir.join("hello.txt")), HELLO);
    let table = MountTable::read().unwrap();
    let row = table.by_id(mounted.id().id).unwrap();
    assert!(row.is_musherfs());
    assert_eq!(row.source, "https://registry.example/a,b");
    assert_eq!(row.user_id(), Some(NOBODY));

    // In use: refused with the user's name, then detached, which frees the name at once.
    let user = User::new(&dir, ":");
    let error = mounted.unmount(How::Plain).unwrap_err();
    assert!(
        matches!(&error, MountError::Busy { holders, .. } if names(holders, user.0.id())),
        "{error:?}"
    );
    mounted.unmount(How::Lazy).unwrap();
    assert!(fs_types(&dir).is_empty());
    drop(user);
    runtime()
        .block_on(async { tokio::time::timeout(DEADLINE, serving.ended()).await })
        .expect("the session ends")
        .unwrap();

    // Not in use: gone by the plain way, also by path.
    let mounted = mount(&point, &options).unwrap();
    let serving = serve(&mounted, Tiny::default(), 2).unwrap();
    unmount_command(&dir, How::Plain).unwrap();
    assert!(!mounted.is_current());
    drop(serving);

    let labelled = MountOptions {
        labels: vec![("context".to_owned(), "u:r:t:s0".to_owned())],
        ..MountOptions::default()
    };
    let error = mount(&point, &labelled).unwrap_err();
    assert!(matches!(error, MountError::RootOnly { .. }), "{error:?}");

    let for_all = MountOptions {
        allow_other: true,
        ..MountOptions::default()
    };
    let permitted = fs::read_to_string("/etc/fuse.conf")
        .is_ok_and(|text| text.lines().any(|line| line.trim() == "user_allow_other"));
    if !permitted {
        let error = mount(&point, &for_all).unwrap_err();
        assert!(matches!(error, MountError::AllowOtherDenied), "{error:?}");
    }

    let roots = MountPoint::prepare(&base.join("roots")).unwrap();
    let error = mount(&roots, &options).unwrap_err();
    assert!(
        matches!(error, MountError::MountpointDenied { .. }),
        "{error:?}"
    );

    let theirs = PathBuf::from(std::env::var_os(ROOTS).unwrap());
    for how in [How::Plain, How::Lazy, How::Force] {
        let error = unmount_command(&theirs, how).unwrap_err();
        assert!(
            matches!(&error, MountError::UnmountDenied { message, .. } if message.contains("user 0")),
            "{error:?}"
        );
    }
    assert_eq!(fs_types(&theirs), ["fuse.musherfs"]);
    0
}
