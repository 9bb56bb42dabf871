//! The files of the page, which are part of the program. uPlot is vendored as its authors
//! publish it, with its licence.

/// One file.
pub(super) struct Asset {
    pub path: &'static str,
    pub kind: &'static str,
    pub bytes: &'static [u8],
}

const HTML: &str = "text/html; charset=utf-8";
const CSS: &str = "text/css; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";

/// All files that are served.
pub(super) static ASSETS: [Asset; 8] = [
    Asset { path: "/", kind: HTML, bytes: include_bytes!("files/page.html") },
    Asset { path: "/icon.svg", kind: "image/svg+xml", bytes: include_bytes!("files/icon.svg") },
    Asset { path: "/page.css", kind: CSS, bytes: include_bytes!("files/page.css") },
    Asset { path: "/page.js", kind: SCRIPT, bytes: include_bytes!("files/page.js") },
    Asset { path: "/plots.js", kind: SCRIPT, bytes: include_bytes!("files/plots.js") },
    Asset { path: "/uplot/uPlot.js", kind: SCRIPT, bytes: include_bytes!("files/uplot/uPlot.iife.min.js") },
    Asset { path: "/uplot/uPlot.css", kind: CSS, bytes: include_bytes!("files/uplot/uPlot.min.css") },
    Asset { path: "/uplot/LICENSE", kind: "text/plain; charset=utf-8", bytes: include_bytes!("files/uplot/LICENSE") },
];

/// What asks for the token where the page is not on the loopback address.
pub(super) const ENTER: &str = include_str!("files/enter.html");

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_page_is_small_and_fetches_nothing_from_elsewhere() {
        let bytes: usize = ASSETS.iter().map(|asset| asset.bytes.len()).sum();
        assert!(bytes < 120_000, "{bytes} bytes, and curves take up to 80,000 of 200,000");
        for asset in ASSETS.iter().filter(|asset| asset.path != "/icon.svg" && !asset.path.starts_with("/uplot/")) {
            let text = std::str::from_utf8(asset.bytes).unwrap();
            for word in ["://", "onclick=", "style=", "<script>", "eval(", "innerHTML"] {
                assert!(!text.contains(word), "{} has `{word}`", asset.path);
            }
        }
    }
}
