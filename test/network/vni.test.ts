import test from 'ava';
import {VniAllocator} from '../../src/network/vni.ts';
import type {AdaptorError} from '../../src/core/errors.ts';

test('a VNI is never given to two callers, and the first one is the lowest', t => {
	const allocator = new VniAllocator(555_000, Math.random);
	const vnis = Array.from({length: 5000}, () => allocator.take().vni);
	t.is(new Set(vnis).size, 5000);
	t.true(vnis.every(vni => vni >= 555_000 && vni <= 0xff_ff_ff));
});

test('VNIs never exceed 24 bits, and if all are in use, the error says so', t => {
	const allocator = new VniAllocator(0xff_ff_fd, () => 0.99);
	t.deepEqual(Array.from({length: 3}, () => allocator.take().vni).sort(), [0xff_ff_fd, 0xff_ff_fe, 0xff_ff_ff]);
	const error = t.throws<AdaptorError>(() => allocator.take());
	t.is(error.code, 'resource-exhausted');
	t.regex(error.message, /VXLAN_MIN_ID/v);
	allocator.release(0xff_ff_fe);
	t.is(allocator.take().vni, 0xff_ff_fe);
});

test('a VNI that the kernel refused is not tried again by the same caller, but may be tried by others', t => {
	const allocator = new VniAllocator(0xff_ff_fe, () => 0);
	const first = allocator.take();
	const second = first.another();
	t.not(second.vni, first.vni);
	t.throws(() => second.another(), {message: /no free VNI/v});
	t.is(new Set([allocator.take().vni, allocator.take().vni]).size, 2);
});

test('adopted VNIs are not given out', t => {
	const allocator = new VniAllocator(0xff_ff_fe, () => 0);
	allocator.adopt(0xff_ff_fe);
	t.is(allocator.take().vni, 0xff_ff_ff);
});

test("a node full of another daemon's tunnels costs a caller few refusals", t => {
	const others = new VniAllocator(555_000, Math.random);
	const held = new Set(Array.from({length: 1000}, () => others.take().vni));
	const ours = new VniAllocator(555_000, Math.random);
	let refusals = 0;
	for (let call = 0; call < 200; call++) {
		for (let attempt = ours.take(); held.has(attempt.vni); attempt = attempt.another()) {
			refusals++;
		}
	}

	// 1.5 % of the span: about one would do, had the first guess not hit the other's row.
	t.true(refusals < 50, `${refusals} refusals`);
});
