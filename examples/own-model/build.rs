//! Lets the binary find libtorch where it was linked. A dependency's build script cannot do
//! this for the binaries of other crates.

fn main() {
    println!("cargo:rerun-if-env-changed=LIBTORCH");
    let Some(libtorch) = std::env::var("LIBTORCH").ok().filter(|_| std::env::var_os("CARGO_FEATURE_LIBTORCH").is_some()) else {
        return;
    };
    println!("cargo:rustc-link-arg=-Wl,-rpath,{libtorch}/lib");
    // Nothing references libtorch's CUDA library by symbol: without this the linker drops it,
    // and no GPU is seen.
    if std::path::Path::new(&libtorch).join("lib/libtorch_cuda.so").exists() {
        println!("cargo:rustc-link-arg=-Wl,--no-as-needed");
        println!("cargo:rustc-link-arg=-ltorch_cuda");
    }
}
