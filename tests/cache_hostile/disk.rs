//! Disks that cannot be written: nowhere, read-only, full, filling up half-way.

use std::ffi::CString;
use std::fs::{self, File};
use std::io::Write;
use std::sync::{Arc, Mutex};

use musherfs::cache::{Blob, Cache};
use musherfs::digest::Digest;
use musherfs::error::Error;
use rustix::mount::{MountFlags, UnmountFlags, mount, mount_remount, unmount};
use tempfile::TempDir;

use crate::fuse::cannot_run;
use crate::{bytes, files, host, manifest, now, write_blob};

/// Collects what the log says on this thread.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn warnings(work: impl FnOnce()) -> usize {
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::WARN)
        .with_writer(move || writer.clone())
        .finish();
    tracing::subscriber::with_default(subscriber, work);
    let text = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    text.lines().count()
}

/// A reader gets its bytes, entries cannot be written, and the log is told once.
fn assert_serves_from_memory(cache: &Cache) {
    let content = vec![b'x'; 300_000];
    let warnings = warnings(|| {
        for _ in 0..3 {
            let blob = write_blob(cache, &content);
            assert!(matches!(blob, Blob::Memory(_)));
            assert_eq!(bytes(&blob), content);
            assert_eq!(bytes(&write_blob(cache, b"")), b"");
            let error = cache.write_manifest(&host(), &manifest("1.2.0"), now());
            assert!(matches!(error, Err(Error::Io { .. })));
        }
    });
    assert_eq!(warnings, 1);
}

#[test]
fn a_root_that_cannot_be_created_means_serving_from_memory() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("file"), "").unwrap();
    for root in [
        dir.path().join("file"),
        dir.path().join("file/musher"),
        "/proc/musher".into(),
    ] {
        let cache = Cache::new(root);
        assert_serves_from_memory(&cache);
        assert!(
            cache
                .read_manifest(&host(), manifest("1.2.0").id())
                .is_none()
        );
        assert!(cache.open_blob(Digest::of(b"")).is_none());
        assert_eq!(cache.usage(), Default::default());
    }
}

#[test]
fn the_wrong_bytes_are_refused_in_memory_too() {
    let cache = Cache::new("/proc/musher".into());
    let mut writer = cache.blob_writer(6);
    writer.write(b"other\n").unwrap();
    assert!(matches!(writer.write(b"!"), Err(Error::Malformed { .. })));
    let error = writer.finish(Digest::of(b"hello\n")).unwrap_err();
    assert!(matches!(error, Error::WrongBytes { .. }));
    let mut writer = cache.blob_writer(6);
    writer.write(b"wrong").unwrap();
    writer.restart();
    writer.write(b"hello\n").unwrap();
    assert_eq!(
        bytes(&writer.finish(Digest::of(b"hello\n")).unwrap()),
        b"hello\n"
    );
}

/// A small file system of its own; unmounted on drop.
struct Tmpfs(TempDir);

impl Tmpfs {
    /// `None` where this process may not mount, and the test cannot run.
    fn of_kib(kib: usize) -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let options = CString::new(format!("size={kib}k,mode=0700")).unwrap();
        match mount("tmpfs", dir.path(), "tmpfs", MountFlags::empty(), &*options) {
            Ok(()) => Some(Self(dir)),
            Err(error) => {
                cannot_run(&format!("a tmpfs cannot be mounted: {error}"));
                None
            }
        }
    }

    fn cache(&self) -> Cache {
        Cache::new(self.0.path().join("musher"))
    }

    fn make_read_only(&self) {
        mount_remount(self.0.path(), MountFlags::RDONLY, c"").unwrap();
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _ = unmount(self.0.path(), UnmountFlags::DETACH);
    }
}

#[test]
fn a_read_only_cache_is_read_and_new_content_is_served_from_memory() {
    let Some(disk) = Tmpfs::of_kib(4096) else {
        return;
    };
    let cache = disk.cache();
    drop(write_blob(&cache, b"hello\n"));
    cache
        .write_manifest(&host(), &manifest("1.2.0"), now())
        .unwrap();
    disk.make_read_only();
    assert!(
        cache
            .read_manifest(&host(), manifest("1.2.0").id())
            .is_some()
    );
    assert!(cache.open_blob(Digest::of(b"hello\n")).is_some());
    assert_serves_from_memory(&cache);
}

#[test]
fn a_disk_that_is_full_or_fills_up_in_a_blob_fails_no_reader() {
    let Some(disk) = Tmpfs::of_kib(256) else {
        return;
    };
    let cache = disk.cache();
    drop(write_blob(&cache, b"hello\n"));
    let content: Vec<u8> = (0..1_000_000_u32).map(|i| (i % 251) as u8).collect();
    let warnings = warnings(|| {
        // Most of it fits nowhere.
        let blob = write_blob(&cache, &content);
        assert!(matches!(blob, Blob::Memory(_)));
        assert_eq!(bytes(&blob), content);
        // A second attempt after the disk filled up starts over as well.
        let mut writer = cache.blob_writer(1_000_000);
        writer.write(&content).unwrap();
        writer.restart();
        writer.write(&content[..500_000]).unwrap();
        writer.write(&content[500_000..]).unwrap();
        assert_eq!(
            bytes(&writer.finish(Digest::of(&content)).unwrap()),
            content
        );
    });
    assert_eq!(warnings, 1);
    assert!(
        files(&cache.root().join("temp")).is_empty(),
        "the disk is given back"
    );
    // What is small still fits.
    assert!(matches!(write_blob(&cache, b"world\n"), Blob::File(_)));

    // Now there is no room at all.
    let mut filler = File::create(disk.0.path().join("filler")).unwrap();
    while filler.write_all(&[0; 4096]).is_ok() {}
    let blob = write_blob(&cache, b"no room for this");
    assert_eq!(bytes(&blob), b"no room for this");
    assert!(
        cache
            .write_manifest(&host(), &manifest("1.2.0"), now())
            .is_err()
    );
    assert_eq!(cache.usage().blobs, 2);
    assert_eq!(cache.usage().entries, 0, "no half entry");
}
