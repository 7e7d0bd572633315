import test from 'ava';
import fc from 'fast-check';
import {AdaptorError} from '../../src/core/errors.ts';
import {formatUuid, parseUuid, slotCount, VmSlots} from '../../src/podvm/vm-slots.ts';

test('slots are the same in every run, so that a restart and an upgrade keep their MACs', t => {
	const slots = new VmSlots('cluster', 'node-1');
	t.is(formatUuid(slots.at(0).uuid), 'f88767e8-cd50-80a5-88a3-cb2003806a00');
	t.is(slots.at(0x1f).mac, '52:c7:74:ab:53:1f');
});

test('a MAC is unicast and locally administered, a UUID is of version 8 and variant 10', t => {
	fc.assert(
		fc.property(fc.string(), fc.nat(slotCount - 1), (node, number) => {
			const {uuid, mac} = new VmSlots('c', node.replaceAll('\0', '')).at(number);
			t.is(Number.parseInt(mac.slice(0, 2), 16) & 0b11, 0b10);
			t.regex(mac, /^52(:[0-9a-f]{2}){5}$/);
			t.regex(formatUuid(uuid), /^[0-9a-f]{8}-[0-9a-f]{4}-8[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$/);
			t.deepEqual(parseUuid(formatUuid(uuid)), uuid);
		}),
	);
});

test('a UUID gives its slot back, to its own cluster and node only', t => {
	const slots = new VmSlots('cluster', 'node');
	for (let number = 0; number < slotCount; number++) {
		t.is(slots.numberOf(slots.at(number).uuid), number);
	}

	for (const other of [
		new VmSlots('cluster', 'node2'),
		new VmSlots('clustern', 'ode'),
		new VmSlots('', 'cluster\u0001node'),
	]) {
		t.is(other.numberOf(slots.at(7).uuid), undefined);
	}

	t.is(slots.numberOf(Buffer.alloc(15)), undefined);
});

test('the lowest free slot comes first, and the 257th VM is refused', t => {
	const slots = new VmSlots('cluster', 'node');
	t.is(slots.lowestFree(new Set()), 0);
	t.is(slots.lowestFree(new Set([0, 1, 3])), 2);
	const error = t.throws(() => slots.lowestFree(new Set(Array.from({length: slotCount}, (_, number) => number))), {
		instanceOf: AdaptorError,
	});
	t.is(error.code, 'resource-exhausted');
});

test('names with NUL are refused, because they could give the same hash as another cluster and node', t => {
	t.throws(() => new VmSlots('a\0b', 'c'), {instanceOf: AdaptorError});
});
