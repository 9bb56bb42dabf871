fn main() {
    worker::f()
}
