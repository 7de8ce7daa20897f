//! A kernel of your own on the queue: products of int8 matrices, as an inference server needs them.
//!
//! `cargo run --release -p warpcore-examples --example custom_kernel`. Each request is a vector of 1,024 activations that
//! is multiplied by a fixed matrix of 1,024 x 256 weights. What waits together is computed together:
//! eight requests read each weight once. With AVX-512 VNNI one instruction makes 64 products.

use std::time::Instant;

use warpcore_offload::{Call, CustomKernel, Queue};

const INPUTS: usize = 1024;
const OUTPUTS: usize = 256;
/// Requests that share a pass over the weights: an accumulator register for each.
const WIDTH: usize = 8;

/// A layer of a network.
struct Layer {
    /// By output: the weights of its inputs.
    weights: Vec<[i8; INPUTS]>,
    name: &'static str,
    product: Product,
}

/// A way to multiply.
type Product = fn(&Layer, &mut [&mut Vectors]);

/// Activations, and what the layer makes of them.
struct Vectors(Box<([u8; INPUTS], [i32; OUTPUTS])>);

impl CustomKernel for Layer {
    type Item = Vectors;

    fn name(&self) -> &'static str {
        self.name
    }

    fn width(&self) -> usize {
        WIDTH
    }

    fn run(&self, items: &mut [&mut Vectors]) {
        (self.product)(self, items);
    }
}

fn scalar(layer: &Layer, items: &mut [&mut Vectors]) {
    for item in items {
        let (inputs, outputs) = &mut *item.0;
        for (output, weights) in outputs.iter_mut().zip(&layer.weights) {
            let products = inputs.iter().zip(weights);
            *output = products.map(|(input, weight)| i32::from(*input) * i32::from(*weight)).sum();
        }
    }
}

/// Eight requests and an output at a time: a row of weights is loaded once for all of them.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512vnni")]
fn vnni(layer: &Layer, items: &mut [&mut Vectors]) {
    use std::arch::x86_64::{
        _mm512_dpbusd_epi32, _mm512_loadu_si512, _mm512_reduce_add_epi32, _mm512_setzero_si512,
    };
    for (output, weights) in layer.weights.iter().enumerate() {
        let mut sums = [_mm512_setzero_si512(); WIDTH];
        for at in (0..INPUTS).step_by(64) {
            // SAFETY: 64 bytes from `at` on lie within the row, whose length is a multiple of 64.
            let row = unsafe { _mm512_loadu_si512(weights[at..].as_ptr().cast()) };
            for (sum, item) in sums.iter_mut().zip(items.iter()) {
                // SAFETY: as above, of the activations.
                let inputs = unsafe { _mm512_loadu_si512(item.0.0[at..].as_ptr().cast()) };
                *sum = _mm512_dpbusd_epi32(*sum, inputs, row);
            }
        }
        for (sum, item) in sums.iter().zip(items.iter_mut()) {
            item.0.1[output] = _mm512_reduce_add_epi32(*sum);
        }
    }
}

fn layer(name: &'static str, product: Product) -> &'static Layer {
    let mut state = 1_u32;
    let mut weight = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state.to_be_bytes()[0].cast_signed()
    };
    let weights = (0..OUTPUTS).map(|_| std::array::from_fn(|_| weight())).collect();
    Box::leak(Box::new(Layer { weights, name, product }))
}

/// Requests a second, and a sum of everything that came out.
fn measure(layer: &'static Layer, waiting: usize) -> (f64, i64) {
    const REQUESTS: usize = 4096;
    let queue = Queue::new(waiting);
    let started = Instant::now();
    let mut sum = 0;
    for round in 0..REQUESTS / waiting {
        let ops: Vec<_> = (0..waiting)
            .map(|n| {
                let byte = (round * waiting + n).to_le_bytes()[0];
                let vectors = Box::new(([byte; INPUTS], [0; OUTPUTS]));
                queue.submit(Call { kernel: layer, item: Vectors(vectors) })
            })
            .collect();
        for op in ops {
            let called = queue.run(op);
            called.result.expect("the kernel does not panic");
            sum += called.item.0.1.iter().map(|output| i64::from(*output)).sum::<i64>();
        }
    }
    (REQUESTS as f64 / started.elapsed().as_secs_f64(), sum)
}

fn main() {
    let reference = layer("scalar", scalar);
    let (per_second, expected) = measure(reference, 32);
    println!("scalar             {per_second:>9.0} products/s");
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx512vnni") {
        // SAFETY: the instructions are there.
        let vnni = layer("VNNI", |layer, items| unsafe { vnni(layer, items) });
        for waiting in [1, 8, 32] {
            let (per_second, sum) = measure(vnni, waiting);
            assert_eq!(sum, expected, "the same products");
            println!("VNNI, {waiting:>2} waiting   {per_second:>9.0} products/s");
        }
        return;
    }
    println!("this processor has no AVX-512 VNNI");
}
