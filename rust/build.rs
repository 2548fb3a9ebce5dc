//! Copies `kernels/*.py` where maturin looks for files to ship as `mipo.kernels`.
use std::{env, fs, path::Path};

fn main() -> std::io::Result<()> {
    println!("cargo:rerun-if-changed=kernels");
    let out = Path::new(&env::var("OUT_DIR").expect("cargo sets OUT_DIR")).join("kernels");
    fs::create_dir_all(&out)?;
    for entry in fs::read_dir("kernels")? {
        let path = entry?.path();
        if path.extension().is_some_and(|e| e == "py") {
            fs::copy(&path, out.join(path.file_name().expect("a file has a name")))?;
        }
    }
    Ok(())
}
