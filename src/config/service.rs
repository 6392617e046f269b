//! What a service manager has put into the environment of this process: where it listens, and the
//! descriptors that it has kept for it (sd_listen_fds(3), systemd's file descriptor store).

use std::path::PathBuf;

use crate::paths::Env;

/// The first descriptor that is passed.
const FIRST: i32 = 3;

/// A service manager that speaks systemd's protocol.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceManager {
    /// Where it is notified; a first character `@` stands for the abstract namespace.
    pub socket: PathBuf,
    /// Whether it says that it keeps descriptors (systemd 254 and later).
    pub keeps: bool,
    /// The numbers and names of the descriptors that it has kept.
    pub kept: Vec<(i32, String)>,
}

impl ServiceManager {
    /// The one that started this process, if one did that wants to be notified.
    pub fn from_env() -> Option<Self> {
        Self::resolve(std::process::id(), &|name| std::env::var_os(name))
    }

    fn resolve(pid: u32, env: Env<'_>) -> Option<Self> {
        let text = |name: &str| env(name).and_then(|value| value.into_string().ok());
        let number = |name: &str| text(name).and_then(|value| value.parse::<u32>().ok());
        let socket = env("NOTIFY_SOCKET").filter(|socket| !socket.is_empty())?;
        // Inherited from another process that they were meant for, they are nobody's.
        let passed = number("LISTEN_FDS").filter(|_| number("LISTEN_PID") == Some(pid));
        let names = text("LISTEN_FDNAMES").unwrap_or_default();
        let names = names.split(':').chain(std::iter::repeat(""));
        let passed = i32::try_from(passed.unwrap_or(0)).unwrap_or(0);
        Some(Self {
            socket: socket.into(),
            keeps: number("FDSTORE").is_some_and(|most| most > 0),
            kept: (FIRST..FIRST.saturating_add(passed))
                .zip(names)
                .map(|(fd, name)| (fd, name.to_owned()))
                .collect(),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;

    use super::*;

    fn resolve(variables: &[(&str, &str)]) -> Option<ServiceManager> {
        let env = |name: &str| {
            let found = variables.iter().find(|(key, _)| *key == name);
            found.map(|(_, value)| OsString::from(value))
        };
        ServiceManager::resolve(7, &env)
    }

    #[test]
    fn descriptors_are_taken_by_whom_they_were_meant_for() {
        let all = [
            ("NOTIFY_SOCKET", "/run/systemd/notify"),
            ("FDSTORE", "8"),
            ("LISTEN_PID", "7"),
            ("LISTEN_FDS", "2"),
            ("LISTEN_FDNAMES", "device:state"),
        ];
        let manager = resolve(&all).unwrap();
        assert!(manager.keeps);
        assert_eq!(
            manager.kept,
            [(3, "device".to_owned()), (4, "state".to_owned())]
        );
        let mut others = all;
        others[2].1 = "8";
        assert!(resolve(&others).unwrap().kept.is_empty());
        assert_eq!(resolve(&all[1..]), None);
        assert!(!resolve(&all[..1]).unwrap().keeps);
    }
}
