pub fn f() {
    let d = burn::tensor::Device::libtorch();
    let _ = burn::tensor::Tensor::<1>::zeros([1], &d);
}
