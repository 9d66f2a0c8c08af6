//! The page in a real browser, without a network.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use testyard_runner::report::{ReportKind, RunRecord};

use crate::{rendered, sample};

/// Names of browsers that run without a screen.
const BROWSERS: [&str; 5] =
    ["chromium-headless-shell", "chromium-shell", "chromium", "chromium-browser", "google-chrome"];

fn browser() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    BROWSERS
        .iter()
        .flat_map(|name| std::env::split_paths(&path).map(move |folder| folder.join(name)))
        .find(|p| p.is_file())
}

/// A page in a folder of its own.
struct Page {
    browser: PathBuf,
    folder: tempfile::TempDir,
    bytes: usize,
}

impl Page {
    fn of(browser: PathBuf, record: &RunRecord) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let text = rendered(ReportKind::Html, record);
        std::fs::write(folder.path().join("page.html"), &text).expect("written");
        Self { browser, folder, bytes: text.len() }
    }

    fn open(&self, options: &[String], hash: &str) -> String {
        let mut command = Command::new(&self.browser);
        // No sandbox within the sandbox: root and containers have none, and the page is our own.
        command.args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]);
        command.args(["--host-resolver-rules=MAP * ~NOTFOUND", "--timeout=60000"]).args(options);
        command.arg(format!("--user-data-dir={}", self.folder.path().join("profile").display()));
        command.arg(format!("file://{}#{hash}", self.folder.path().join("page.html").display()));
        command.env("HOME", self.folder.path()).stderr(Stdio::null());
        let output = command.output().expect("it was found");
        assert!(output.status.success(), "{:?}", output.status);
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// What the document is after its script has run.
    fn document(&self, hash: &str) -> String {
        self.open(&["--dump-dom".to_owned()], hash)
    }

    fn screenshot(&self, hash: &str, width: u32, height: u32, to: &Path) {
        let options = [format!("--window-size={width},{height}"), format!("--screenshot={}", to.display())];
        let _ = self.open(&options, hash);
    }
}

/// An attribute of the document's root.
fn told(document: &str, name: &str) -> f64 {
    let attribute = format!("data-{name}=\"");
    let rest = document.split_once(&attribute).unwrap_or_else(|| panic!("no {name} in {:.400}", document)).1;
    rest.split_once('"').and_then(|(value, _)| value.parse().ok()).expect("a number")
}

/// A page that stands for a browser where there is none.
macro_rules! page {
    ($record:expr) => {
        match browser() {
            Some(browser) => Page::of(browser, &$record),
            None => {
                let thread = std::thread::current();
                let name = thread.name().unwrap_or(module_path!());
                testkit::skip!(name, "no browser is installed: apt install chromium-headless-shell")
            }
        }
    };
}

#[test]
fn ten_thousand_tests_are_shown_and_filtered_at_once() {
    let page = page!(sample::many(10_000));
    assert!(page.bytes < 10 << 20, "{} bytes", page.bytes);
    let document = page.document("filter=area_07+case_01");
    assert_eq!(told(&document, "matches"), 20.0, "every fiftieth of a thousand");
    assert!(told(&document, "rows") < 60.0, "only what is seen is made");
    let (ready, filter) = (told(&document, "ready-ms"), told(&document, "filter-ms"));
    println!("{} bytes, ready after {ready} ms, filtered in {filter} ms", page.bytes);
    assert!(filter <= 100.0, "{filter} ms");
    assert!(ready <= 3_000.0, "{ready} ms");
    let document = page.document("result=failed,timed-out");
    assert_eq!(told(&document, "matches"), 750.0);
    assert!(document.contains("<h1 id=\"title\">shop</h1>"));
}

#[test]
fn names_and_output_are_only_ever_text() {
    let page = page!(sample::every_kind());
    for hash in ["", "filter=result:failed", "filter=owner:ana+tag:slow"] {
        let document = page.document(hash);
        assert!(!document.contains("<img"), "a name became markup");
        assert!(document.contains("<title>shop, other: "), "the title is ours");
        assert!(document.contains("&lt;/script&gt;&lt;img src=x"), "the name is shown");
    }
    let document = page.document("filter=owner:ana+tag:slow");
    assert_eq!(told(&document, "matches"), 1.0);
    assert!(document.contains("<pre>&lt;/script&gt;&lt;script&gt;document.title='owned'"), "its output is shown");
    for line in
        ["<span class=\"added\">+ /tmp/&lt;b&gt;new&lt;/b&gt;  12 bytes\n", "<span class=\"deleted\">- /etc/motd\n"]
    {
        assert!(document.contains(line), "what it changed in the file system: {line}");
    }
}

#[test]
fn nothing_is_fetched_and_no_other_script_runs() {
    let text = rendered(ReportKind::Html, &sample::every_kind());
    for word in ["http://", "https://", "@import", "url(", " src=\"", "fetch(", "XMLHttpRequest", "innerHTML"] {
        assert!(!text.contains(word), "{word}");
    }
    assert!(text.contains("default-src 'none'"));
    assert_eq!(text.matches("<script").count(), 2, "the data and the page's own");
    assert_eq!(text.matches("</script").count(), 2);
}

#[test]
fn it_can_be_looked_at_in_any_width_and_light() {
    let page = page!(sample::many(400));
    // Where a developer wants to see them, they stay.
    let keep = std::env::var_os("TESTYARD_SCREENSHOTS").map(PathBuf::from);
    let folder = keep.unwrap_or_else(|| page.folder.path().to_owned());
    if std::env::var_os("TESTYARD_SCREENSHOTS").is_some() {
        let page = page!(sample::every_kind());
        page.screenshot("theme=light&test=shop::flaky", 1_280, 2_400, &folder.join("every-kind.png"));
    }
    for (theme, width) in [("light", 1_280), ("dark", 1_280), ("light", 400), ("dark", 400)] {
        let to = folder.join(format!("{theme}-{width}.png"));
        page.screenshot(&format!("theme={theme}"), width, 2_600, &to);
        let bytes = std::fs::metadata(&to).expect("a picture").len();
        assert!(bytes > 20_000, "an empty page is smaller than {bytes} bytes");
    }
}
