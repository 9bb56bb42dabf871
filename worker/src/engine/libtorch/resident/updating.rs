//! The update of the part of the weights that an engine owns. With LARS and LAMB, norms of
//! whole parameters are known only when every engine that owns a part of them has measured its
//! own, so an update has steps, between which a group of engines adds up what each has found.

use tch::{Kind, Tensor, no_grad};

use super::super::super::EngineError;
use super::super::update;
use super::ResidentEngine;
use crate::optim::rule::{Pairs, Rule, is_adapted, ratios, scales};
use crate::optim::{Update, UpdateReport};

impl ResidentEngine {
    /// Updates the part that is owned with its part of a flat gradient of this norm. Only for
    /// an engine that owns all.
    pub(super) fn update_all(&mut self, gradient: &Tensor, norm: f64, update: Update) -> Result<UpdateReport, EngineError> {
        let clipped = update.clip(self.train.clip_norm, norm);
        let update = Update { factor: clipped.factor, ..update };
        let ratios = if self.train.optimizer.is_layerwise() {
            self.begin_update(gradient, update)?;
            let scales = scales(&self.network.layout, &self.largest(gradient, update)?);
            let sums = self.sums(gradient, update, &scales)?;
            ratios(&self.train, &self.network.layout, update, &sums, &scales)
        } else {
            Vec::new()
        };
        self.finish_update(gradient, update, &ratios)?;
        Ok(clipped.report)
    }

    /// Does what comes before norms are measured. The update's factor is the whole one.
    pub(in super::super) fn begin_update(&mut self, gradient: &Tensor, update: Update) -> Result<(), EngineError> {
        match Rule::first(&self.train, update) {
            Some(rule) => {
                // Running statistics have no moments.
                let trained = (self.owned.len() - self.running()) as i64;
                let part = |flat: &Tensor| flat.f_narrow(0, 0, trained);
                let slots = self.slots.iter().map(part).collect::<Result<Vec<_>, _>>()?;
                no_grad(|| update::apply(&rule, &part(&self.own(&self.master)?)?, &part(gradient)?, &slots, None, None))
            }
            None => Ok(()),
        }
    }

    /// The largest absolute values of what is owned of each parameter.
    pub(in super::super) fn largest(&self, gradient: &Tensor, update: Update) -> Result<Pairs<f32>, EngineError> {
        let none = || Ok(Tensor::f_zeros([1], (Kind::Float, self.device))?);
        let found = self.measured(gradient, update, &|_, _, values| Ok(values.f_abs()?.f_max()?.f_reshape([1])?), &none)?;
        // Those of several pieces of a parameter: libtorch's maximum is NaN if one is.
        let most = found.iter().map(|pieces| Ok(Tensor::f_cat(pieces, 0)?.f_max()?)).collect::<Result<Vec<_>, EngineError>>()?;
        Ok(Vec::<f32>::try_from(Tensor::f_stack(&most, 0)?)?.as_chunks().0.to_vec())
    }

    /// The sums of `crate::optim::norms::squares` of what is owned of each parameter.
    pub(in super::super) fn sums(&self, gradient: &Tensor, update: Update, scales: &[[f64; 2]]) -> Result<Pairs<i64>, EngineError> {
        let none = || Ok(Tensor::f_zeros([1], (Kind::Int64, self.device))?);
        let squares = |param: usize, of: usize, values: &Tensor| {
            let exact = values.f_to_kind(Kind::Double)?;
            let scaled = exact.f_mul(&exact)?.f_mul_scalar(scales[param][of])?;
            Ok(scaled.f_round()?.f_to_kind(Kind::Int64)?.f_sum(Kind::Int64)?.f_reshape([1])?)
        };
        let found = self.measured(gradient, update, &squares, &none)?;
        let sums = found.iter().map(|pieces| Ok(Tensor::f_cat(pieces, 0)?.f_sum(Kind::Int64)?)).collect::<Result<Vec<_>, EngineError>>()?;
        Ok(Vec::<i64>::try_from(Tensor::f_stack(&sums, 0)?)?.as_chunks().0.to_vec())
    }

    /// Changes the weights, and holds no gradient any more.
    pub(in super::super) fn finish_update(&mut self, gradient: &Tensor, update: Update, ratios: &[f64]) -> Result<(), EngineError> {
        let mirror = self.mirror.as_ref().map(|flat| self.own(flat)).transpose()?;
        let master = self.own(&self.master)?;
        for (range, rule) in Rule::runs(&self.train, &self.network.layout, update, ratios) {
            let Some((start, len)) = self.place(&range) else { continue };
            let part = |flat: &Tensor| flat.f_narrow(0, start, len);
            let slots = self.slots.iter().map(part).collect::<Result<Vec<_>, _>>()?;
            let mirror = mirror.as_ref().map(part).transpose()?;
            let average = self.average.as_ref().map(part).transpose()?;
            let average = average.as_ref().zip(Rule::average(&self.train, update));
            no_grad(|| update::apply(&rule, &part(&master)?, &part(gradient)?, &slots, mirror.as_ref(), average))?;
        }
        super::Engine::forget(self)
    }

    /// Exchanges what is owned of the weights with their average.
    pub(super) fn swap_owned(&mut self) -> Result<(), EngineError> {
        let Some(average) = &self.average else { return Ok(()) };
        no_grad(|| {
            let (mut master, mut average) = (self.own(&self.master)?, average.shallow_clone());
            let mut weights = master.f_empty_like()?;
            weights.f_copy_(&master)?;
            master.f_copy_(&average)?;
            average.f_copy_(&weights)?;
            self.mirror.as_ref().map(|flat| Ok(self.own(flat)?.f_copy_(&master)?)).transpose().map(|_| ())
        })
    }

    /// Of each parameter, the pieces of what `measure` makes of the owned part of its weights,
    /// and then of that of their direction. It is given the parameter's number, 0 or 1, and a
    /// piece of f32 values. `none` is the result for a parameter of which nothing is owned, or
    /// that has no learning rate of its own.
    fn measured(
        &self,
        gradient: &Tensor,
        update: Update,
        measure: &dyn Fn(usize, usize, &Tensor) -> Result<Tensor, EngineError>,
        none: &dyn Fn() -> Result<Tensor, EngineError>,
    ) -> Result<Vec<Vec<Tensor>>, EngineError> {
        let (lamb, master) = (Rule::direction(&self.train, update), self.own(&self.master)?);
        let mut found = Vec::new();
        for (number, param) in self.network.layout.params().iter().enumerate() {
            let (mut weights, mut directions) = (Vec::new(), Vec::new());
            if let Some((start, len)) = self.place(&param.range()).filter(|_| is_adapted(param)) {
                no_grad(|| {
                    for (start, len) in update::pieces(&master, start, len) {
                        let piece = |flat: &Tensor| flat.f_narrow(0, start, len);
                        let own = piece(&master)?;
                        weights.push(measure(number, 0, &own)?);
                        directions.push(match (&lamb, self.slots.as_slice()) {
                            (Some(step), [m, v]) => measure(number, 1, &update::lamb_direction(step, &own, &piece(m)?, &piece(v)?)?)?,
                            _ => measure(number, 1, &piece(gradient)?.f_to_kind(Kind::Float)?)?,
                        });
                    }
                    Ok::<(), EngineError>(())
                })?;
            } else {
                weights.push(none()?);
                directions.push(none()?);
            }
            found.extend([weights, directions]);
        }
        Ok(found)
    }

    /// The part of a flat vector that is owned.
    fn own(&self, flat: &Tensor) -> Result<Tensor, EngineError> {
        Ok(flat.f_narrow(0, self.owned.start as i64, self.owned.len() as i64)?)
    }

    /// Where in the owned part a range of the flat vector lies, as far as it is owned.
    fn place(&self, range: &std::ops::Range<usize>) -> Option<(i64, i64)> {
        let (start, end) = (range.start.max(self.owned.start), range.end.min(self.owned.end));
        (start < end).then(|| ((start - self.owned.start) as i64, (end - start) as i64))
    }
}
