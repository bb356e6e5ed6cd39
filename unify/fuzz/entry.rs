// The parsers that read what a guest wrote, one function each: whatever the bytes are, they return, and
// give back no more than they were given. Both the fuzz targets and the property tests call these.

use std::path::Path;

use unify::classify::Class;
use unify::packages::{apk, dpkg, pacman, rpm, sqlite};
use unify::policy::Policy;

pub fn dpkg_status(bytes: &[u8]) {
    let mut seen = 0;
    for stanza in dpkg::stanzas(bytes).map_while(Result::ok) {
        assert!(!stanza.name.is_empty() && !stanza.name.contains(&b'/'));
        let conffiles: usize = dpkg::conffiles(stanza.conffiles).map(<[u8]>::len).sum();
        assert!(conffiles <= stanza.conffiles.len());
        seen += stanza.name.len() + stanza.conffiles.len();
    }
    assert!(seen <= bytes.len());
}

pub fn dpkg_list(bytes: &[u8]) {
    assert!(dpkg::list(bytes).map(<[u8]>::len).sum::<usize>() <= bytes.len());
    assert!(dpkg::md5sums(bytes).map(<[u8]>::len).sum::<usize>() <= bytes.len());
}

pub fn dpkg_diversions(bytes: &[u8]) {
    let all = dpkg::diversions(bytes).unwrap_or_default();
    assert!(all.len() * 5 <= bytes.len() + 1);
    assert!(all.iter().all(|one| !one.from.is_empty() && !one.to.is_empty() && !one.by.is_empty()));
}

pub fn rpm_header(bytes: &[u8]) {
    let Ok(header) = rpm::header(bytes) else { return };
    if let Ok(package) = header.package() {
        assert!(!package.name.is_empty());
    }
    if let Ok(files) = header.files() {
        assert!(files.map(|file| file.name.len() + 1).sum::<usize>() <= bytes.len());
    }
}

pub fn sqlite_log(bytes: &[u8]) {
    if let Some(log) = sqlite::log(bytes) {
        assert!(log.frames.values().all(|start| start + log.page_size <= bytes.len()));
    }
}

pub fn apk_installed(bytes: &[u8]) {
    let rules = apk::protections([bytes]);
    for line in apk::installed(bytes).map_while(Result::ok) {
        if let apk::Line::Field(_, value) = line {
            assert!(value.len() <= bytes.len());
            apk::is_protected(&rules, value);
        }
    }
}

pub fn pacman_files(bytes: &[u8]) {
    let all = pacman::sections(bytes).map(|(_, line)| pacman::backup(line).len()).sum::<usize>();
    assert!(all <= bytes.len());
}

pub fn policy(bytes: &[u8]) {
    let mut policy = Policy::default();
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    match policy.add(text, Path::new("unify.toml")) {
        Ok(()) => {
            let root = kernel::Dir::open_host(Path::new("/")).expect("the root opens");
            let stat = root.stat_self().expect("an open directory has a stat");
            let stat = kernel::Stat { kind: kernel::Kind::File, size: 0, ..stat };
            let class = policy.in_dir(b"usr/bin").classify(b"x", &stat, None);
            assert!(matches!(class, Class::Private(_)), "an empty file was shared");
            let stat = kernel::Stat { size: 1, ..stat };
            policy.in_dir(b"etc/\xff").classify(b"\xfe\n", &stat, None);
        }
        Err(error) => assert!(error.to_string().starts_with("unify.toml:")),
    }
}
