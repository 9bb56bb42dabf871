//! Lets the binaries of this crate find libtorch where it was linked, so that
//! nobody has to set LD_LIBRARY_PATH.

fn main() {
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
