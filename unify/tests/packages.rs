//! Package databases, made by hand and by the package managers themselves.
#![allow(clippy::disallowed_methods)] // the tests build guests in directories of their own
#![allow(clippy::unwrap_used, clippy::print_stdout)] // helpers of tests fail by panicking and say what was skipped

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use kernel::Dir;
use tempfile::TempDir;
use unify::packages::{Manager, Packages, Role};

/// A guest made of texts.
struct Guest(TempDir);

impl Guest {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn file(&self, path: &str, content: impl AsRef<[u8]>) -> &Self {
        let path = self.0.path().join(path);
        // A link made by the test before must not lead this write out of the guest.
        let there = path.ancestors().skip(1).find_map(|dir| dir.canonicalize().ok()).unwrap();
        assert!(there.starts_with(self.0.path().canonicalize().unwrap()), "{} leads outside", path.display());
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
        self
    }

    fn link(&self, path: &str, target: &str) -> &Self {
        let path = self.0.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        symlink(target, path).unwrap();
        self
    }

    fn root(&self) -> Dir {
        Dir::open_host(self.0.path()).unwrap()
    }

    fn packages(&self) -> Packages {
        Packages::read(&self.root())
    }
}

/// `package:role`, or nothing.
fn owner(packages: &Packages, path: &str) -> String {
    let (dir, name) = path.rsplit_once('/').unwrap_or(("", path));
    let owner = packages.in_dir(dir.as_bytes()).owner(name.as_bytes());
    owner.map_or_else(String::new, |owner| format!("{}:{:?}", packages.get(owner.package).name, owner.role))
}

fn warnings(packages: &Packages) -> String {
    let all: Vec<String> = packages.warnings().iter().map(ToString::to_string).collect();
    all.join("\n")
}

fn versions(packages: &Packages) -> Vec<String> {
    let text =
        |package: &unify::packages::Package| format!("{} {} {}", package.name, package.version, package.arch);
    packages.list().map(|(_, package)| text(package)).collect()
}

const STATUS: &str = "\
Package: bash
Status: install ok installed
Architecture: amd64
Version: 5.2-1
Conffiles:
 /etc/bash.bashrc 89269e1298235f1b12b4c16e4065ad0d
 /etc/old one 00000000000000000000000000000000 obsolete
 /etc/gone 11111111111111111111111111111111 remove-on-upgrade
Description: a shell
 with a text that says /etc/no 22222222222222222222222222222222

Package: libc6
Status: install ok half-configured
Architecture: amd64
Multi-Arch: same
Version: 1:2.36

Package: libc6
Status: install ok unpacked
Architecture: i386
Multi-Arch: same
Version: 1:2.36

Package: removed
Status: deinstall ok config-files
Architecture: all
Version: 3
conffiles:
 /etc/removed 33333333333333333333333333333333

Package: never
Status: unknown ok not-installed
Architecture: all
Version: 1
";

fn debian() -> Guest {
    let guest = Guest::new();
    guest.file("var/lib/dpkg/status", STATUS);
    guest.file(
        "var/lib/dpkg/info/bash.list",
        "/.\n/bin\n/bin/bash\n/etc\n/etc/bash.bashrc\n/usr/share/doc/a b\n",
    );
    guest.file("var/lib/dpkg/info/libc6:amd64.list", "/lib/x86/libc.so\n/usr/share/libc\n");
    guest.file("var/lib/dpkg/info/libc6:i386.list", "/lib/i386/libc.so\n/usr/share/libc\n");
    guest.file("var/lib/dpkg/info/removed.list", "/usr/bin/removed\n/etc/removed\n");
    guest.file("usr/bin/bash", "").file("usr/lib/x86/libc.so", "");
    guest.link("bin", "/usr/bin").link("lib", "usr/lib");
    guest
}

#[test]
fn dpkg_tells_packages_conffiles_and_real_places() {
    let packages = debian().packages();
    assert_eq!(warnings(&packages), "");
    let all = ["bash 5.2-1 amd64", "libc6 1:2.36 amd64", "libc6 1:2.36 i386", "removed 3 all"];
    assert_eq!(versions(&packages), all);
    for (path, wanted) in [
        ("usr/bin/bash", "bash:Content"),
        ("bin/bash", ""),
        ("usr/lib/x86/libc.so", "libc6:Content"),
        ("usr/lib/i386/libc.so", "libc6:Content"),
        ("usr/share/libc", "libc6:Content"),
        ("usr/share/doc/a b", "bash:Content"),
        ("etc/bash.bashrc", "bash:Config"),
        ("etc/old one", "bash:Config"),
        ("etc/gone", "bash:Config"),
        ("etc/no", ""),
        ("etc/removed", "removed:Config"),
        ("usr/bin/removed", ""),
        ("usr/bin/other", ""),
    ] {
        assert_eq!(owner(&packages, path), wanted, "{path}");
    }
    assert_eq!(packages.find("removed").count(), 0);
    assert_eq!(packages.find("libc6").count(), 2);
}

#[test]
fn a_diverted_file_is_owned_where_it_really_is() {
    let guest = debian();
    let lines = [
        ["/bin/bash", "/bin/bash.real", "other"],
        ["/etc/bash.bashrc", "/etc/bash.bashrc.dist", ":"],
        ["/usr/share/doc/a b", "/usr/share/doc/a b.mine", "bash"],
    ];
    guest.file("var/lib/dpkg/diversions", lines.map(|lines| lines.join("\n") + "\n").concat());
    let packages = guest.packages();
    assert_eq!(warnings(&packages), "");
    assert_eq!(owner(&packages, "usr/bin/bash"), "");
    assert_eq!(owner(&packages, "usr/bin/bash.real"), "bash:Content");
    assert_eq!(owner(&packages, "etc/bash.bashrc"), "");
    assert_eq!(owner(&packages, "etc/bash.bashrc.dist"), "bash:Config");
    assert_eq!(owner(&packages, "usr/share/doc/a b"), "bash:Content"); // its own diversion
}

#[test]
fn updates_of_an_interrupted_dpkg_count() {
    let guest = debian();
    let entry = |version: u32, status: &str| {
        format!("Package: bash\nStatus: install ok {status}\nVersion: {version}\nArchitecture: amd64\n")
    };
    guest.file("var/lib/dpkg/updates/0001", entry(7, "unpacked"));
    guest.file("var/lib/dpkg/updates/0000", entry(6, "half-installed"));
    guest.file("var/lib/dpkg/updates/tmp.i", "half writ");
    let packages = guest.packages();
    assert_eq!(packages.find("bash").map(|(_, package)| &*package.version).collect::<Vec<_>>(), ["7"]);
}

#[test]
fn distroless_images_are_read() {
    let guest = Guest::new();
    guest.file("var/lib/dpkg/status.d/tzdata", "Package: tzdata\nVersion: 2024a\nArchitecture: all\n");
    let sums = "0123456789abcdef0123456789abcdef  usr/share/zoneinfo/UTC\nshort\n";
    guest.file("var/lib/dpkg/status.d/tzdata.md5sums", sums);
    let packages = guest.packages();
    assert_eq!(versions(&packages), ["tzdata 2024a all"]);
    assert_eq!(owner(&packages, "usr/share/zoneinfo/UTC"), "tzdata:Content");
    assert_eq!(packages.paths(), 1);
}

#[test]
fn a_missing_list_is_an_empty_package_as_for_dpkg() {
    let guest = debian();
    fs::remove_file(guest.0.path().join("var/lib/dpkg/info/bash.list")).unwrap();
    let packages = guest.packages();
    let wanted = "var/lib/dpkg/info/bash.list: the package's file list is missing; files of bash count as owned by no package";
    assert_eq!(warnings(&packages), wanted);
    assert_eq!(owner(&packages, "usr/bin/bash"), "");
    assert_eq!(owner(&packages, "etc/bash.bashrc"), "bash:Config");
}

#[test]
fn broken_databases_count_as_none_and_say_so() {
    let broken = |path: &str, content: &[u8], wanted: &str| {
        let guest = debian();
        guest.file(path, content);
        let packages = guest.packages();
        let said = warnings(&packages);
        assert!(said.contains(wanted), "{said}");
        assert!(said.contains("count as owned by no package"), "{said}");
        assert_eq!(said.lines().count(), 1, "{said}");
        (packages.has_database(), packages.paths())
    };
    let status = "var/lib/dpkg/status";
    assert_eq!(
        broken(status, &[0; 4096], "status: not a valid database: a line without a field"),
        (false, 0)
    );
    assert_eq!(broken(status, b"Version: 1\n", "an entry without a valid package name"), (false, 0));
    assert_eq!(broken(status, b"Package: ../../x\n", "an entry without a valid package name"), (false, 0));
    assert_eq!(broken("var/lib/dpkg/diversions", b"/a\n/b\n", "that is not three lines"), (false, 0));
    // Another manager's database is none the worse for it.
    let rpm = broken("var/lib/rpm/rpmdb.sqlite", &[1; 9000], "rpmdb.sqlite: not a readable SQLite database");
    assert!(rpm.0 && rpm.1 > 0);
    assert!(broken("lib/apk/db/installed", b"P:a\nnonsense\n", "a line without a field").0);
    assert!(broken("lib/apk/db/installed", b"P:a\nR:x\n", "a file without package or directory").0);
    assert!(broken("var/lib/pacman/local/x-1/desc", b"%VERSION%\n1\n", "a package without a name").0);
}

#[test]
fn what_should_be_a_file_and_is_not_neither_blocks_nor_leads_out() {
    let guest = debian();
    let status = guest.0.path().join("var/lib/dpkg/status");
    fs::remove_file(&status).unwrap();
    rustix::fs::mknodat(rustix::fs::CWD, &status, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
    assert!(warnings(&guest.packages()).contains("var/lib/dpkg/status: not a regular file"));
    fs::remove_file(&status).unwrap();
    symlink("/var/lib/dpkg/status", &status).unwrap();
    assert!(warnings(&guest.packages()).contains("a symbolic link is in the way"));

    let outside = Guest::new();
    outside.file("dpkg/status", STATUS);
    let hostile = Guest::new();
    hostile.link("var/lib/dpkg", &format!("{}/dpkg", outside.0.path().display()));
    assert!(!hostile.packages().has_database());
}

#[test]
fn a_huge_file_is_refused_unread() {
    let guest = Guest::new();
    guest.file("var/lib/dpkg/status", "");
    fs::File::options()
        .write(true)
        .open(guest.0.path().join("var/lib/dpkg/status"))
        .unwrap()
        .set_len(1 << 40)
        .unwrap();
    assert!(warnings(&guest.packages()).contains("status: larger than any real database"));
}

#[test]
fn apk_config_is_what_is_protected() {
    let guest = Guest::new();
    let installed = "C:Q1x\nP:busybox\nV:1.36-r2\nA:x86_64\nF:bin\nM:0:0:755\nR:busybox\na:0:0:755\nZ:Q1y\n\
        F:etc\nR:motd\nF:etc/init.d\nR:ntpd\nF:etc/apk\nR:arch\nF:opt/conf.d\nR:a.conf\nR:b.bin\nF:\nR:top\n\n\
        P:musl\nV:1.2\nA:x86_64\nF:lib\nR:ld.so\n\n";
    guest.file("lib/apk/db/installed", installed);
    guest.file("etc/apk/protected_paths.d/x.list", "# mine\n+opt/*.d/*.conf\n-etc/apk\n");
    guest.file("etc/apk/protected_paths.d/ignored", "+bin\n");
    let packages = guest.packages();
    assert_eq!(warnings(&packages), "");
    assert_eq!(versions(&packages), ["busybox 1.36-r2 x86_64", "musl 1.2 x86_64"]);
    for (path, wanted) in [
        ("bin/busybox", "busybox:Content"),
        ("etc/motd", "busybox:Config"),
        ("etc/init.d/ntpd", "busybox:Content"),
        ("etc/apk/arch", "busybox:Content"),
        ("opt/conf.d/a.conf", "busybox:Config"),
        ("opt/conf.d/b.bin", "busybox:Content"),
        ("top", "busybox:Content"),
        ("lib/ld.so", "musl:Content"),
    ] {
        assert_eq!(owner(&packages, path), wanted, "{path}");
    }
}

#[test]
fn apk_is_found_once_where_lib_is_merged() {
    let guest = Guest::new();
    guest.file("usr/lib/apk/db/installed", "P:musl\nV:1\nA:x\nF:lib\nR:ld.so\n\n").link("lib", "usr/lib");
    let packages = guest.packages();
    assert_eq!(versions(&packages), ["musl 1 x"]);
    assert_eq!(owner(&packages, "usr/lib/ld.so"), "musl:Content");
}

#[test]
fn pacman_names_files_and_backups() {
    let guest = Guest::new();
    guest.file("var/lib/pacman/local/ALPM_DB_VERSION", "9\n");
    guest.file(
        "var/lib/pacman/local/bash-5.2-1/desc",
        "%NAME%\nbash\n\n%VERSION%\n5.2-1\n\n%ARCH%\nx86_64\n\n",
    );
    let files = "%FILES%\netc/\netc/bash.bashrc\nusr/\nusr/bin/\nusr/bin/bash\n%odd%\n\n%BACKUP%\netc/bash.bashrc\t0123\n\n";
    guest.file("var/lib/pacman/local/bash-5.2-1/files", files);
    let packages = guest.packages();
    assert_eq!(warnings(&packages), "");
    assert_eq!(versions(&packages), ["bash 5.2-1 x86_64"]);
    assert_eq!(owner(&packages, "etc/bash.bashrc"), "bash:Config");
    assert_eq!(owner(&packages, "usr/bin/bash"), "bash:Content");
    assert_eq!(owner(&packages, "%odd%"), "bash:Content");
    assert_eq!(packages.paths(), 3);
}

#[test]
fn versions_are_compared_between_guests() {
    let one = debian().packages();
    let guest = debian();
    guest.file("var/lib/dpkg/status", STATUS.replace("5.2-1", "5.2-2"));
    let other = guest.packages();
    assert!(!one.same_version(&other, "bash") && one.same_version(&other, "libc6"));
    assert!(!one.same_version(&other, "removed") && !one.same_version(&other, "nothing"));
    let both: Vec<_> = one.list().map(|(id, _)| one.is_in(id, &other)).collect();
    assert_eq!(both, [false, true, true, false]);
    guest.file("var/lib/dpkg/status", STATUS.replace("i386", "armhf"));
    assert!(!one.same_version(&guest.packages(), "libc6"));
}

#[test]
fn the_fingerprint_changes_with_the_databases_only() {
    let guest = debian();
    let first = Packages::fingerprint(&guest.root());
    guest.file("usr/bin/new", "x").file("etc/x", "y").file("var/lib/dpkg/lock", "");
    assert_eq!(Packages::fingerprint(&guest.root()), first);
    assert_eq!(guest.packages().fingerprint_when_read(), first);
    guest.file("var/lib/dpkg/info/new.list", "");
    let second = Packages::fingerprint(&guest.root());
    guest.file("var/lib/dpkg/status-new", STATUS);
    fs::rename(guest.0.path().join("var/lib/dpkg/status-new"), guest.0.path().join("var/lib/dpkg/status"))
        .unwrap();
    let third = Packages::fingerprint(&guest.root());
    guest.file("var/lib/rpm/rpmdb.sqlite", "");
    let fourth = Packages::fingerprint(&guest.root());
    assert_eq!(BTreeSet::from([first, second, third, fourth]).len(), 4);
}

#[test]
fn old_rpm_formats_are_named() {
    for (name, format) in [("Packages.db", "ndb"), ("Packages", "Berkeley DB")] {
        let guest = Guest::new();
        guest
            .file(&format!("usr/lib/sysimage/rpm/{name}"), "x")
            .link("var/lib/rpm", "../../usr/lib/sysimage/rpm");
        let packages = guest.packages();
        let said = warnings(&packages);
        assert!(
            said.starts_with(&format!("usr/lib/sysimage/rpm/{name}: rpm's {format} format is not read")),
            "{said}"
        );
        assert_eq!(said.lines().count(), 1);
        assert!(!packages.has_database());
    }
}

#[test]
fn a_database_below_a_link_is_found() {
    let guest = Guest::new();
    guest.file("data/var/lib/rpm/Packages", "x").file("data/var/lib/dpkg/status", "Package: a\n");
    guest.file("data/apk/db/installed", "P:musl\n").link("var", "data/var").link("lib/apk", "../data/apk");
    let packages = guest.packages();
    assert!(warnings(&packages).contains("data/var/lib/rpm/Packages: rpm's Berkeley DB"));
    assert_eq!(versions(&packages), ["a  ", "musl  "]);
}

fn run(command: &mut Command) -> Option<String> {
    let output = command.env("LC_ALL", "C").output().ok()?;
    let failed = || panic!("{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    Some(if output.status.success() { String::from_utf8(output.stdout).unwrap() } else { failed() })
}

/// Packages by path.
type Lists = BTreeMap<PathBuf, BTreeSet<String>>;

/// What dpkg says of a tree: for each package its conffiles and its list.
fn ask_dpkg(root: &Path, packages: &[&str]) -> Option<(BTreeSet<PathBuf>, Lists)> {
    let admin = format!("--admindir={}", root.join("var/lib/dpkg").display());
    let real = |path: &str| {
        let path = Path::new(path.strip_prefix('/')?);
        let dir = root.join(path.parent()?).canonicalize().ok()?;
        let place = dir.join(path.file_name()?);
        place
            .symlink_metadata()
            .ok()?
            .is_file()
            .then(|| place.strip_prefix(root).map(Path::to_path_buf))
            .and_then(Result::ok)
    };
    let format = "--showformat=${db:Status-Status} ${binary:Package}\\n${Conffiles}\\n";
    let shown = run(Command::new("dpkg-query").args([&admin, "--show", format]))?;
    let (mut conffiles, mut lists) = (BTreeSet::new(), Lists::new());
    for line in shown.lines().filter(|line| !line.is_empty()) {
        if let Some(conffile) = line.strip_prefix(' ') {
            conffiles.extend(real(conffile.split(' ').next()?));
        } else if let Some(package) = line.split(' ').nth(1).filter(|_| !line.starts_with("config-files")) {
            let name = package.split(':').next()?;
            if packages.is_empty() || packages.contains(&name) {
                let list = run(Command::new("dpkg-query").args([&admin, "--listfiles", package]))?;
                for path in list.lines().filter_map(real) {
                    lists.entry(path).or_default().insert(name.to_string());
                }
            }
        }
    }
    Some((conffiles, lists))
}

/// Every regular file below `dir`, mounts excepted.
fn walk(dir: &Path, each: &mut impl FnMut(&Path)) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => walk(&entry.path(), each),
            Ok(kind) if kind.is_file() => each(&entry.path()),
            _ => {}
        }
    }
}

/// Holds what we read against what dpkg says. Diversions are dpkg's business in its lists, so files that
/// it reports diverted are looked at only as far as we agree that somebody owns them.
fn compare_with_dpkg(root: &Path, names: &[&str]) {
    let before = Packages::fingerprint(&Dir::open_host(root).unwrap());
    let Some((conffiles, lists)) = ask_dpkg(root, names) else {
        println!("SKIP: compare_with_dpkg: dpkg-query is not installed");
        return;
    };
    let packages = Packages::read(&Dir::open_host(root).unwrap());
    if packages.fingerprint_when_read() != before {
        println!("SKIP: compare_with_dpkg: packages are being installed just now");
        return;
    }
    assert_eq!(warnings(&packages), "");
    let diversions = fs::read_to_string(root.join("var/lib/dpkg/diversions")).unwrap_or_default();
    for (path, owners) in &lists {
        let found = owner(&packages, path.to_str().unwrap());
        let agreed = found.split(':').next().is_some_and(|name| owners.contains(name));
        assert!(
            agreed || diversions.contains(path.file_name().unwrap().to_str().unwrap()),
            "{}: {found:?}, {owners:?}",
            path.display()
        );
        assert_eq!(found.ends_with("Config"), conffiles.contains(path), "{}", path.display());
    }
    let mut config = BTreeSet::new();
    for top in ["etc", "usr/lib", "usr/share", "var/lib"] {
        walk(&root.join(top), &mut |path| {
            let path = path.strip_prefix(root).unwrap();
            if let Some(text) = path.to_str().filter(|text| owner(&packages, text).ends_with("Config")) {
                config.insert(PathBuf::from(text));
            }
        });
    }
    assert_eq!(config, conffiles);
    println!(
        "{}: {} files, {} conffiles, {} packages",
        root.display(),
        lists.len(),
        conffiles.len(),
        packages.list().count()
    );
}

#[test]
fn the_hosts_own_dpkg_agrees() {
    compare_with_dpkg(Path::new("/"), &["bash", "coreutils", "base-files"]);
}

#[test]
#[ignore = "needs a Debian tree: UNIFY_DEBIAN=/path cargo test -- --ignored"]
fn a_debian_guest_agrees() {
    let root = std::env::var("UNIFY_DEBIAN").expect("UNIFY_DEBIAN names a tree made by mmdebstrap");
    compare_with_dpkg(Path::new(&root), &[]);
}

const SPEC: &str = "\
Name: sample
Epoch: 3
Version: 1.5
Release: 2
Summary: s
License: MIT
BuildArch: noarch
%description
d
%install
mkdir -p %{buildroot}/etc %{buildroot}/usr/bin %{buildroot}/var/lib/sample %{buildroot}/bin
echo a >%{buildroot}/etc/sample.conf
echo a >%{buildroot}/etc/sample.keep
echo b >%{buildroot}/usr/bin/sample
echo b >%{buildroot}/bin/also
echo c >%{buildroot}/var/lib/sample/state
echo d >%{buildroot}/var/lib/sample/cache
%files
%config /etc/sample.conf
%config(noreplace) /etc/sample.keep
/usr/bin/sample
/bin/also
%dir /var/lib/sample
%verify(not md5 size mtime) /var/lib/sample/state
%ghost /var/lib/sample/cache
";

/// Builds the sample and installs it into a guest; or says why not.
fn rpm_guest() -> Result<Guest, &'static str> {
    if Command::new("rpmbuild").arg("--version").output().is_err() {
        return Err("rpmbuild is not installed");
    }
    if !rustix::process::geteuid().is_root() {
        return Err("rpm --root needs root");
    }
    let guest = Guest::new();
    fs::create_dir_all(guest.0.path().join("usr/bin")).unwrap();
    guest.link("bin", "usr/bin");
    let work = Guest::new();
    work.file("sample.spec", SPEC);
    let top = work.0.path().display();
    run(Command::new("rpmbuild")
        .args(["-bb", "--quiet", "--define", &format!("_topdir {top}")])
        .arg(work.0.path().join("sample.spec")));
    let rpm = work.0.path().join("RPMS/noarch/sample-1.5-2.noarch.rpm");
    let debian = Path::new("/etc/debian_version").exists().then_some("--force-debian");
    let root = format!("--root={}", guest.0.path().display());
    run(Command::new("rpm")
        .args(["-i", "--nodeps", "--define", "_db_backend sqlite", &root])
        .args(debian)
        .arg(rpm));
    Ok(guest)
}

/// Where rpm put the database, by its macros.
fn database(guest: &Guest) -> PathBuf {
    ["var/lib/rpm", "usr/lib/sysimage/rpm", "root/.rpmdb"]
        .map(|place| guest.0.path().join(place))
        .into_iter()
        .find(|place| place.join("rpmdb.sqlite").exists())
        .expect("rpm made a database")
}

#[test]
fn a_database_that_rpm_made_is_read() {
    let guest = match rpm_guest() {
        Ok(guest) => guest,
        Err(why) => return println!("SKIP: a_database_that_rpm_made_is_read: {why}"),
    };
    let home = database(&guest);
    if !home.ends_with("var/lib/rpm") {
        fs::create_dir_all(guest.0.path().join("var/lib")).unwrap();
        fs::rename(&home, guest.0.path().join("var/lib/rpm")).unwrap();
    }
    let packages = guest.packages();
    assert_eq!(warnings(&packages), "");
    assert_eq!(versions(&packages), ["sample 3:1.5-2 noarch"]);
    assert!(packages.list().all(|(_, package)| package.manager == Manager::Rpm && package.installed));
    for (path, wanted) in [
        ("etc/sample.conf", "sample:Config"),
        ("etc/sample.keep", "sample:Config"),
        ("usr/bin/sample", "sample:Content"),
        ("usr/bin/also", "sample:Content"),
        ("var/lib/sample", ""),
        ("var/lib/sample/state", "sample:Generated"),
        ("var/lib/sample/cache", "sample:Generated"),
    ] {
        assert_eq!(owner(&packages, path), wanted, "{path}");
    }
    assert_eq!(packages.paths(), 6);
    assert_eq!(Role::Config.max(Role::Generated), Role::Config);
}

#[test]
fn a_hostile_schema_is_refused() {
    for sql in [
        "CREATE VIEW Packages AS SELECT zeroblob(1000) AS blob FROM sqlite_schema",
        "CREATE VIRTUAL TABLE Packages USING fts5(blob)",
        "CREATE TABLE Packages(hnum INTEGER PRIMARY KEY, blob); INSERT INTO Packages VALUES (1, 'text')",
        "CREATE TABLE Packages(hnum, blob AS (zeroblob(1 << 30))); INSERT INTO Packages VALUES (1)",
        "CREATE TABLE other(x)",
    ] {
        let guest = Guest::new();
        guest.file("var/lib/rpm/x", "");
        let made = rusqlite::Connection::open(guest.0.path().join("var/lib/rpm/rpmdb.sqlite")).unwrap();
        if made.execute_batch(sql).is_err() {
            continue; // this SQLite is built without the module
        }
        drop(made);
        let packages = guest.packages();
        assert_eq!(packages.warnings().len(), 1, "{sql}");
        assert!(!packages.has_database(), "{sql}");
    }
}
