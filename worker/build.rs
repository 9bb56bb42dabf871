//! Compiles what is written in C++, and lets the binaries of this crate find libtorch
//! where it was linked, so that nobody has to set LD_LIBRARY_PATH.

#[cfg(feature = "libtorch")]
fn compile_shim() {
    use std::path::PathBuf;

    const SHIM: &str = "src/engine/libtorch/shim.cpp";
    println!("cargo:rerun-if-changed={SHIM}");
    println!("cargo:rerun-if-env-changed=LIBTORCH_INCLUDE");
    // torch-sys says where it found the libraries.
    let lib = std::env::var_os("DEP_TCH_LIBTORCH_LIB").map(PathBuf::from);
    let include = std::env::var_os("LIBTORCH_INCLUDE").map(PathBuf::from).or_else(|| lib.map(|lib| lib.with_file_name("include")));
    let mut build = cc::Build::new();
    build.cpp(true).std("c++17").warnings(false).file(SHIM);
    if let Some(include) = include {
        build.include(include.join("include")).include(include);
    }
    build.compile("ringleader_shim");
}

fn main() {
    #[cfg(feature = "libtorch")]
    compile_shim();
    println!("cargo:rerun-if-env-changed=LIBTORCH");
    if std::env::var_os("CARGO_FEATURE_LIBTORCH").is_none() {
        return;
    }
    if let Ok(libtorch) = std::env::var("LIBTORCH") {
        println!("cargo:rustc-link-arg=-Wl,-rpath,{libtorch}/lib");
        // With a CUDA build of libtorch nothing references libtorch_cuda.so by
        // symbol; without this the linker would drop it and no GPU would be seen.
        let cuda = std::path::Path::new(&libtorch).join("lib/libtorch_cuda.so");
        // Another libtorch at the same place is linked anew.
        println!("cargo:rerun-if-changed={libtorch}/lib");
        if cuda.exists() {
            println!("cargo:rustc-env=LIBTORCH_HAS_CUDA=1");
            println!("cargo:rustc-link-arg=-Wl,--no-as-needed");
            println!("cargo:rustc-link-arg=-ltorch_cuda");
        }
    }
}
