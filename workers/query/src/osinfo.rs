//! Kernel and distribution, for `guest-get-osinfo`.

use proto::query::OsInfo;

use crate::assignments::each_assignment;
use crate::kernel::string;
use crate::root::Root;

/// os-release(5): the first that exists counts.
const FILES: [&str; 2] = ["/etc/os-release", "/usr/lib/os-release"];

/// From uname(2) and os-release; `configured` is the only file to read if given. What is missing is left out.
pub(crate) fn os_info(root: &Root, configured: Option<&str>) -> OsInfo {
    let content = match configured {
        Some(path) => root.read_whole(path).ok(),
        None => FILES.into_iter().find_map(|path| root.read_whole(path).ok()),
    };
    let uname = rustix::system::uname();
    let mut info = OsInfo {
        kernel_release: Some(string(uname.release())),
        kernel_version: Some(string(uname.version())),
        machine: Some(string(uname.machine())),
        ..OsInfo::default()
    };
    each_assignment(&content.unwrap_or_default(), |name, value| {
        let place = match name {
            "ID" => &mut info.id,
            "NAME" => &mut info.name,
            "PRETTY_NAME" => &mut info.pretty_name,
            "VERSION" => &mut info.version,
            "VERSION_ID" => &mut info.version_id,
            "VARIANT" => &mut info.variant,
            "VARIANT_ID" => &mut info.variant_id,
            _ => return,
        };
        *place = Some(value);
    });
    info
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::Tree;

    #[test]
    fn the_last_of_two_assignments_counts_and_the_rest_is_left_out() {
        let tree =
            Tree::new().file("/etc/os-release", "ID=a\nID=fedora\nVARIANT='Server Edition'\nHOME_URL=x\n");
        let info = os_info(&tree.root(), None);
        assert_eq!(info.id.as_deref(), Some("fedora"));
        assert_eq!(info.variant.as_deref(), Some("Server Edition"));
        assert_eq!(info.name, None);
        assert!(info.kernel_release.is_some_and(|release| !release.is_empty()));
    }

    #[test]
    fn usr_lib_is_read_only_where_etc_has_no_such_file() {
        let vendor = Tree::new().file("/usr/lib/os-release", "ID=vendor\n");
        assert_eq!(os_info(&vendor.root(), None).id.as_deref(), Some("vendor"));
        let both = vendor.file("/etc/os-release", "NAME=local\n");
        assert_eq!(os_info(&both.root(), None).id, None);
        assert_eq!(os_info(&both.root(), None).name.as_deref(), Some("local"));
    }

    #[test]
    fn a_configured_file_is_the_only_one() {
        let tree = Tree::new().file("/etc/os-release", "ID=system\n").file("/srv/release", "ID=configured\n");
        assert_eq!(os_info(&tree.root(), Some("/srv/release")).id.as_deref(), Some("configured"));
        assert_eq!(os_info(&tree.root(), Some("/srv/none")).id, None);
    }
}
