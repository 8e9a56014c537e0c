// Runs one WebAssembly program in V8 by the ABI in docs/reference/wasm-abi.md, as a browser would.
// node wasm_v8.cjs MODULE train|predict INPUT_FRAME_FILE  ->  the output frame on standard output
"use strict";
const fs = require("fs");

const [, , modulePath, mode, inputPath] = process.argv;
const input = fs.readFileSync(inputPath);
const program = new WebAssembly.Instance(new WebAssembly.Module(fs.readFileSync(modulePath)), {}).exports;
const at = program.alloc(input.length) >>> 0;
if (at === 0) throw new Error("no room for the input");
new Uint8Array(program.memory.buffer).set(input, at);
let code = program[mode](at, input.length);
while (code === 1) code = program.step();
if (code === 0 && program.finish) code = program.finish();
const start = program.output_ptr() >>> 0;
const output = Buffer.from(program.memory.buffer, start, program.output_len() >>> 0);
if (code !== 0) throw new Error(`code ${code}: ${output}`);
process.stdout.write(output);
