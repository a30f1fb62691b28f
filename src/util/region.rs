//! Placeholder until the mapped region lands: same interface on the heap.
#[derive(Debug)]
pub struct RegionMut(Box<[u8]>);
impl RegionMut {
    pub fn new(len: usize) -> Self {
        Self(vec![0; len].into())
    }
    pub fn as_mut(&mut self) -> &mut [u8] {
        &mut self.0
    }
    pub fn len(&self) -> usize {
        self.0.len()
    }
    pub fn as_ref(&self) -> &[u8] {
        &self.0
    }
}
