//! A model made from adapters' keys: its layers have the right shapes and, without a base model, no weights.
//!
//! Planning, loading, combining and saving look at nothing else, so they work on it as on a real model.

use std::cmp::Ordering;
use std::collections::BTreeMap;

use candle_core::{DType, Device, Tensor};

use super::empty_layer::EmptyLayer;
use super::empty_parameter::EmptyParameter;
use super::{BaseWeights, StoredAdapter};
use crate::adapter::{AdapterMethod, Geometry, LayerShapes};
use crate::error::{Error, Result, StateDictError, TensorReport};
use crate::inject::base_key;
use crate::layer::Adapted;
use crate::method::BASE_LAYER_PATHS;
use crate::module::{Cursor, CursorMut, Injectable};
use crate::path::ModulePath;
use crate::schema::Schema;
use crate::store::load::{LoadReport, load_stored};
use crate::store::orientation;

/// The model.
#[derive(Default)]
pub(crate) struct Skeleton {
    layer: Option<Adapted<EmptyLayer>>,
    parameter: Option<Adapted<EmptyParameter>>,
    /// How often PEFT wraps the module of the parameter after this one.
    depth: usize,
    children: Vec<(String, Skeleton)>,
}

impl Skeleton {
    /// The layers that any of `adapters` has tensors for.
    pub(crate) fn of(adapters: &[&StoredAdapter], base: Option<&BaseWeights>) -> Result<Self> {
        let mut layers: BTreeMap<ModulePath, EmptyLayer> = BTreeMap::new();
        for adapter in adapters {
            check_reach(adapter)?;
            check_insides(adapter)?;
            add_layers(&mut layers, adapter, base)?;
        }
        for adapter in adapters {
            add_parameters(&mut layers, adapter, base)?;
        }
        let mut skeleton = Self::default();
        for (path, layer) in layers {
            let segments: Vec<&str> = path.segments().collect();
            skeleton.at(&segments).layer = Some(Adapted::new(layer));
        }
        for (path, parameter, depth) in parameters(adapters) {
            let segments: Vec<&str> = path.segments().collect();
            let place = skeleton.at(&segments);
            place.parameter = Some(Adapted::new(parameter));
            place.depth = depth;
        }
        skeleton.sort();
        Ok(skeleton)
    }

    /// Puts an adapter on the layers.
    pub(crate) fn load(
        &mut self,
        adapter: &StoredAdapter,
        method: &dyn AdapterMethod,
        name: &str,
    ) -> Result<LoadReport> {
        load_stored(self, adapter.contents(), method, name)
    }

    /// The place of a path.
    fn at(&mut self, path: &[&str]) -> &mut Self {
        let [name, rest @ ..] = path else { return self };
        let at = self.children.iter().position(|(known, _)| known == name);
        let at = at.unwrap_or_else(|| {
            self.children.push(((*name).to_owned(), Self::default()));
            self.children.len() - 1
        });
        self.children[at].1.at(rest)
    }

    fn sort(&mut self) {
        // Of the parameters of a module PEFT wraps the first one innermost.
        let order = |(a, first): &(String, Self), (b, second): &(String, Self)| {
            second.depth.cmp(&first.depth).then_with(|| by_number(a, b))
        };
        self.children.sort_by(order);
        self.children.iter_mut().for_each(|(_, child)| child.sort());
    }
}

/// Numbers in numerical order, before names.
fn by_number(a: &str, b: &str) -> Ordering {
    match (a.parse::<u64>(), b.parse::<u64>()) {
        (Ok(a), Ok(b)) => a.cmp(&b),
        (Ok(_), Err(_)) => Ordering::Less,
        (Err(_), Ok(_)) => Ordering::Greater,
        (Err(_), Err(_)) => a.cmp(b),
    }
}

/// Refuses adapters whose keys do not tell where their tensors belong.
pub(crate) fn check_reach(adapter: &StoredAdapter) -> Result<()> {
    let selection = adapter.method().selection();
    let is_known = adapter.layer_keys().keys().any(|stem| adapter.parameter(stem).is_some());
    let reason = if !selection.parameters.is_empty() && !is_known {
        "it adapts bare parameters, and without a model its keys do not say which: read it together with the base model \
         (`StoredAdapter::open_for`, or `--base` on the command line)"
    } else if !selection.replication.is_empty() {
        "it repeats blocks of the base model, which needs a model"
    } else {
        return Ok(());
    };
    let (adapter, reason) = (adapter.name().to_owned(), reason.to_owned());
    Err(Error::Unsupported { operation: "read", adapter, reason })
}

/// The shapes of an adapter's tensors on the layer at `path`.
pub(crate) fn layer_shapes(adapter: &StoredAdapter, path: &str, ends: &[&str]) -> LayerShapes {
    let shape = |end: &&str| Some(((*end).to_owned(), adapter.shape(&format!("{path}.{end}"))?.to_vec()));
    ends.iter().filter_map(shape).collect()
}

fn add_layers(
    layers: &mut BTreeMap<ModulePath, EmptyLayer>,
    adapter: &StoredAdapter,
    base: Option<&BaseWeights>,
) -> Result<()> {
    for (path, ends) in adapter.layer_keys() {
        if adapter.parameter(path).is_some() {
            continue;
        }
        let shapes = layer_shapes(adapter, path, &ends);
        let Some(geometry) = geometry(adapter, path, &shapes, base)? else {
            let tensors = shapes.into_iter().collect();
            let (path, method) = (path.to_owned(), adapter.method().name());
            return Err(adapter.of_weights(StateDictError::NoAdapter { path, method, tensors }.into()));
        };
        let wide = |end: &&str| adapter.dtype(&format!("{path}.{end}")) == Some(safetensors::Dtype::F64);
        let dtype = if ends.iter().any(wide) { DType::F64 } else { DType::F32 };
        let path = ModulePath::from(path);
        match layers.get(&path) {
            Some(known) if !is_like(&known.geometry, &geometry) => {
                let reason = format!(
                    "its tensors make `{path}` {geometry:?}, and those of another adapter make it {:?}",
                    known.geometry
                );
                let adapter = adapter.name().to_owned();
                return Err(Error::Unsupported { operation: "combine", adapter, reason });
            }
            Some(_) => {}
            None => {
                let base = base.cloned();
                let layer = EmptyLayer { path: path.clone(), geometry, dtype, parameters: Vec::new(), base };
                layers.insert(path, layer);
            }
        }
    }
    Ok(())
}

/// The geometry of the layer at `path`. How a linear layer's weight lies is found out only where there is a weight.
fn geometry(
    adapter: &StoredAdapter,
    path: &str,
    shapes: &LayerShapes,
    base: Option<&BaseWeights>,
) -> Result<Option<Geometry>> {
    let method = adapter.method();
    let Some((base, weight)) = base.and_then(|base| Some((base, base.shape(path, "weight")?))) else {
        return Ok(method.geometry(shapes, None, method.is_transposed()));
    };
    let found = orientation::geometry(method, shapes, weight, base.facts(), &base.module(path));
    found.map_err(|reason| {
        let adapter = adapter.name().to_owned();
        Error::Unsupported { operation: "read", adapter, reason }
    })
}

/// Whether two layers have one geometry, however their weights lie.
fn is_like(a: &Geometry, b: &Geometry) -> bool {
    let straight = |geometry: &Geometry| match *geometry {
        Geometry::Linear { in_features, out_features, .. } => {
            Geometry::Linear { in_features, out_features, transposed: false }
        }
        ref other => other.clone(),
    };
    straight(a) == straight(b)
}

/// The bare parameters that any of `adapters` is on, with how often PEFT wraps their modules after them.
fn parameters(adapters: &[&StoredAdapter]) -> Vec<(ModulePath, EmptyParameter, usize)> {
    let mut found: Vec<(ModulePath, EmptyParameter, usize)> = Vec::new();
    for adapter in adapters {
        let stems = adapter.layer_keys();
        for known in stems.keys().filter_map(|stem| adapter.parameter(stem)) {
            if !found.iter().any(|(path, ..)| *path == known.path) {
                let parameter = EmptyParameter { geometry: known.geometry.clone() };
                found.push((known.path.clone(), parameter, known.depth));
            }
        }
    }
    found
}

/// Gives layers the parameters that the adapter has values for.
fn add_parameters(
    layers: &mut BTreeMap<ModulePath, EmptyLayer>,
    adapter: &StoredAdapter,
    base: Option<&BaseWeights>,
) -> Result<()> {
    for key in adapter.parameter_keys() {
        let (Some((path, name)), Some(shape)) = (split_parameter(key), adapter.shape(key)) else { continue };
        let layer = layers.entry(path.clone()).or_insert_with(|| EmptyLayer {
            path: path.clone(),
            geometry: Geometry::Opaque,
            dtype: DType::F32,
            parameters: Vec::new(),
            base: base.cloned(),
        });
        if layer.parameters.iter().any(|(known, _)| *known == name) {
            continue;
        }
        let own = base.filter(|base| base.shape(path.as_str(), name) == Some(shape));
        let tensor = match own {
            Some(base) => base.read(path.as_str(), name).map_err(Error::on_layer(&path))?,
            None => Tensor::zeros((), DType::F32, &Device::Cpu)?.broadcast_as(shape)?,
        };
        layer.parameters.push((name, tensor));
        // PyTorch's order.
        layer.parameters.sort_by_key(|(name, _)| *name != "weight");
    }
    Ok(())
}

/// Refuses parameters of modules inside of layers that have an adapter: such layers have no modules inside of them.
fn check_insides(adapter: &StoredAdapter) -> Result<()> {
    let adapted = adapter.layer_keys();
    let is_inside = |path: &str| path.match_indices('.').any(|(dot, _)| adapted.contains_key(&path[..dot]));
    let inside = adapter
        .parameter_keys()
        .filter(|key| split_parameter(key).is_some_and(|(path, _)| is_inside(path.as_str())));
    let unexpected: Vec<String> = inside.map(str::to_owned).collect();
    if unexpected.is_empty() {
        return Ok(());
    }
    let report = TensorReport { unexpected, ..TensorReport::default() };
    Err(adapter.of_weights(Error::Tensors { adapter: adapter.name().to_owned(), report: Box::new(report) }))
}

/// The module and name of the base model parameter that a key in an adapter's file has a value for.
pub(crate) fn split_parameter(key: &str) -> Option<(ModulePath, &'static str)> {
    let key = base_key(key).unwrap_or_else(|| key.to_owned());
    let (path, name) = key.rsplit_once('.')?;
    let name = ["weight", "bias"].into_iter().find(|known| *known == name)?;
    let outer = BASE_LAYER_PATHS.into_iter().find_map(|inner| path.strip_suffix(inner)?.strip_suffix('.'));
    Some((ModulePath::from(outer.unwrap_or(path)), name))
}

impl Injectable for Skeleton {
    const SCHEMA: &'static Schema = &Schema::unknown("Skeleton");

    fn visit<'a>(&'a self, cursor: &mut Cursor<'a>) {
        if let Some(layer) = &self.layer {
            cursor.flatten(layer);
        }
        if let Some(parameter) = &self.parameter {
            cursor.flatten(parameter);
        }
        for (name, child) in &self.children {
            cursor.child(name, child);
        }
    }

    fn visit_mut<'a>(&'a mut self, cursor: &mut CursorMut<'a>) {
        if let Some(layer) = &mut self.layer {
            cursor.flatten(layer);
        }
        if let Some(parameter) = &mut self.parameter {
            cursor.flatten(parameter);
        }
        for (name, child) in &mut self.children {
            cursor.child(name, child);
        }
    }
}
