//! The `musherfs` binary: everything is in the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    musherfs::cli::main()
}
