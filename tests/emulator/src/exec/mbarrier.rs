//! mbarriers.
#[derive(Default)]
pub(crate) struct Mbarriers {
    pub(crate) changed: bool,
}
impl Mbarriers {
    pub(crate) fn describe(&self, _: u32) -> String {
        String::new()
    }
}
