//! The `musherfs` binary: everything but the allocator is in the library.

use std::process::ExitCode;

/// Gives memory back that a burst of work has left behind, whichever threads did it.
///
/// glibc's allocator keeps up to eight arenas a processor, each as large as it ever was: a daemon
/// that refreshes a few hundred names now and then grew by 300 KiB a minute, for hours, without
/// a leak. jemalloc purges what is not in use after ten seconds, from a thread of its own.
#[cfg(target_env = "gnu")]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    musherfs::cli::main()
}
