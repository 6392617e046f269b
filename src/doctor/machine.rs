//! FUSE, the programs and files it needs, and what security policies have against it.

use std::fs::{self, File};
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};

use super::{Area, Finding, Probe};

/// Where `fusermount3` is looked for.
const PROGRAMS: [&str; 4] = [
    "/usr/bin/fusermount3",
    "/bin/fusermount3",
    "/usr/local/bin/fusermount3",
    "/run/wrappers/bin/fusermount3",
];

/// Below these, distributions' AppArmor profiles let `fusermount3` mount.
const APPARMOR_ROOTS: [&str; 6] = ["/home", "/root", "/mnt", "/media", "/tmp", "/run/user"];

pub(super) fn check(probe: &Probe) -> Vec<Finding> {
    let mut findings = vec![device(probe)];
    if !probe.is_root {
        findings.push(fusermount(probe));
    }
    findings.extend(fuse_conf(probe));
    findings.extend(apparmor(probe));
    findings.extend(selinux(probe));
    findings.push(user_namespaces(probe));
    findings.extend(updatedb(probe));
    findings
}

fn device(probe: &Probe) -> Finding {
    const ID: &str = "fuse-device";
    let path = probe.at("/dev/fuse");
    let broken = |message: String, remedy: &str| Finding::fail(ID, Area::Machine, message, remedy);
    match fs::metadata(&path) {
        Err(error) => broken(
            format!("/dev/fuse cannot be used: {error}"),
            "load the module with `modprobe fuse`; in a container, pass the device in (--device /dev/fuse)",
        ),
        Ok(found) if !found.file_type().is_char_device() => broken(
            "/dev/fuse is not a device".to_owned(),
            "remove that file, and load the module with `modprobe fuse`",
        ),
        Ok(_) => match File::options().read(true).write(true).open(&path) {
            Ok(_) => Finding::ok(ID, "/dev/fuse can be opened"),
            Err(error) => broken(
                format!("/dev/fuse cannot be opened: {error}"),
                "`chmod 666 /dev/fuse` as root, or join the group that owns it; in a container, allow the device",
            ),
        },
    }
}

fn fusermount(probe: &Probe) -> Finding {
    const ID: &str = "fusermount3";
    let mut found = PROGRAMS
        .iter()
        .filter_map(|path| Some((path, fs::metadata(probe.at(path)).ok()?)));
    match found.next() {
        None => Finding::fail(
            ID,
            Area::Machine,
            "fusermount3 is not installed, and only it can mount for a plain user",
            "install the package fuse3",
        ),
        Some((path, meta)) if meta.permissions().mode() & 0o4000 == 0 => Finding::fail(
            ID,
            Area::Machine,
            format!("{path} is not setuid root, so it may not mount"),
            format!("`chmod u+s {path}` as root, or reinstall the package fuse3"),
        ),
        Some((path, _)) => Finding::ok(ID, format!("{path} is installed")),
    }
}

fn fuse_conf(probe: &Probe) -> Vec<Finding> {
    const ID: &str = "fuse-conf";
    if probe.is_root {
        return Vec::new();
    }
    let text = match fs::read_to_string(probe.at("/etc/fuse.conf")) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
        Err(error) => {
            return vec![Finding::warn(
                ID,
                format!("/etc/fuse.conf cannot be read: {error}"),
                "`chmod 644 /etc/fuse.conf` as root",
            )];
        }
    };
    let mut settings = text
        .lines()
        .map(|line| line.split('#').next().unwrap_or_default().trim());
    let allowed = settings.clone().any(|line| line == "user_allow_other");
    let mut findings = Vec::new();
    if *probe.config.allow_other && !allowed {
        findings.push(Finding::fail(
            ID,
            Area::Machine,
            "allow_other is set, but /etc/fuse.conf does not permit it to plain users",
            "add the line `user_allow_other` to /etc/fuse.conf as root, or mount as root",
        ));
    }
    let most = settings.find_map(|line| {
        let value = line.strip_prefix("mount_max")?.trim_start();
        value.strip_prefix('=')?.trim().parse::<usize>().ok()
    });
    let mounted = probe
        .table
        .iter()
        .filter(|mount| mount.fs_type.starts_with("fuse"))
        .count();
    if let Some(most) = most.filter(|most| mounted >= *most) {
        findings.push(Finding::fail(
            ID,
            Area::Machine,
            format!("there are {mounted} FUSE mounts, and /etc/fuse.conf allows {most}"),
            "unmount some, or raise `mount_max` in /etc/fuse.conf",
        ));
    }
    if findings.is_empty() {
        let other = if allowed {
            "permits"
        } else {
            "does not permit"
        };
        let message = format!("/etc/fuse.conf {other} allow_other to plain users");
        findings.push(Finding::ok(ID, message));
    }
    findings
}

fn apparmor(probe: &Probe) -> Option<Finding> {
    const ID: &str = "apparmor";
    let enabled = probe.line("/sys/module/apparmor/parameters/enabled")?;
    let profile = probe.at("/etc/apparmor.d/fusermount3");
    if !enabled.starts_with('Y') || !profile.exists() {
        return Some(Finding::ok(ID, "AppArmor does not confine fusermount3"));
    }
    let dir = probe.mountpoint.display().to_string();
    let local = fs::read_to_string(probe.at("/etc/apparmor.d/local/fusermount3"));
    let named = local.is_ok_and(|text| text.contains(&dir));
    let usual = APPARMOR_ROOTS
        .iter()
        .any(|root| probe.mountpoint.starts_with(root));
    if probe.is_root || named || usual {
        let message = format!("AppArmor lets fusermount3 mount on {dir}");
        return Some(Finding::ok(ID, message));
    }
    Some(Finding::fail(
        ID,
        Area::Machine,
        format!("AppArmor's profile of fusermount3 does not allow mounting on {dir}"),
        format!(
            "mount below /mnt or your home; or add `mount fstype=fuse.musherfs -> {dir}/,` to \
             /etc/apparmor.d/local/fusermount3 and run `apparmor_parser -r /etc/apparmor.d/fusermount3`"
        ),
    ))
}

fn selinux(probe: &Probe) -> Option<Finding> {
    const ID: &str = "selinux";
    if probe.line("/sys/fs/selinux/enforce")? != "1" {
        return Some(Finding::ok(ID, "SELinux does not enforce"));
    }
    let unlabelled = probe
        .table
        .iter()
        .find(|mount| mount.is_musherfs() && !mount.super_options.contains("context="));
    Some(match unlabelled {
        Some(mount) => Finding::warn(
            ID,
            format!(
                "SELinux enforces, and {} has no label that containers may read",
                mount.mountpoint.display()
            ),
            "mount as root with -o context=system_u:object_r:container_file_t:s0, \
             or allow it with `setsebool -P virt_use_fusefs 1`",
        ),
        None => Finding::ok(
            ID,
            "SELinux enforces; for containers, mount with -o context=system_u:object_r:container_file_t:s0",
        ),
    })
}

fn user_namespaces(probe: &Probe) -> Finding {
    const ID: &str = "user-namespaces";
    let map = probe.line("/proc/self/uid_map").unwrap_or_default();
    let fields: Vec<&str> = map.split_whitespace().collect();
    if !matches!(fields.as_slice(), [] | ["0", "0", "4294967295"]) && probe.is_root {
        return Finding::warn(
            ID,
            "this root is one of a user namespace only, as in a rootless container",
            "mounting needs a kernel since 4.18, /dev/fuse passed in, and CAP_SYS_ADMIN in that namespace; \
             otherwise mount outside and bind the directory in",
        );
    }
    if probe.line("/proc/sys/user/max_user_namespaces").as_deref() == Some("0") {
        return Finding::warn(
            ID,
            "user namespaces are switched off, which rootless containers need",
            "`sysctl user.max_user_namespaces=15000` as root, if rootless containers are to use the mount",
        );
    }
    let restricted = "/proc/sys/kernel/apparmor_restrict_unprivileged_userns";
    if !probe.is_root && probe.line(restricted).as_deref() == Some("1") {
        return Finding::ok(
            ID,
            "user namespaces are there, but AppArmor keeps unconfined programs from using them",
        );
    }
    Finding::ok(ID, "user namespaces are not in the way")
}

fn updatedb(probe: &Probe) -> Option<Finding> {
    const ID: &str = "updatedb";
    let text = fs::read_to_string(probe.at("/etc/updatedb.conf")).ok()?;
    let listed = text.lines().any(|line| {
        let line = line.trim_start();
        line.starts_with("PRUNEFS") && line.contains("fuse.musherfs")
    });
    let dropped_in = ["/etc", "/usr/lib", "/usr/local/lib", "/lib"]
        .iter()
        .any(|dir| {
            let unit = format!("{dir}/systemd/system/plocate-updatedb.service.d/50-musherfs.conf");
            probe.at(&unit).exists()
        });
    Some(if listed || dropped_in {
        Finding::ok(ID, "updatedb leaves mounts of musherfs alone")
    } else {
        Finding::warn(
            ID,
            "updatedb will walk through mounts of musherfs every night (it fetches lists of files, never content)",
            "add fuse.musherfs to PRUNEFS in /etc/updatedb.conf; scripts/install does it",
        )
    })
}
