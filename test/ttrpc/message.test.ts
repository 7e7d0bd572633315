import test from 'ava';
import * as fc from 'fast-check';
import {AdaptorError} from '../../src/core/errors.ts';
import {
	decodeRequest,
	decodeResponse,
	encodeRequest,
	encodeResponse,
	peekMethod,
	peekStatus,
	type Request,
} from '../../src/ttrpc/message.ts';
import {statusCode} from '../../src/ttrpc/status.ts';
import {framesOf, recorded} from './conversation.ts';

const requestsOf = (name: Parameters<typeof recorded>[0]): Buffer[] =>
	framesOf(recorded(name)).map(frame => frame.message);
const bytesOf = fc.uint8Array({maxLength: 50}).map(bytes => Buffer.from(bytes));
const text = fc.string({unit: 'grapheme', maxLength: 20});
const int64 = fc.bigInt({min: -(2n ** 63n), max: 2n ** 63n - 1n});

for (const name of ['createvm.request.bin', 'startvm.request.bin', 'stopvm.request.bin', 'agent.client.bin'] as const) {
	test(`the requests of ${name} encode to the recorded bytes`, t => {
		for (const message of requestsOf(name)) {
			t.deepEqual(encodeRequest(decodeRequest(message)), message);
		}
	});
}

for (const name of [
	'createvm.response.bin',
	'startvm.response.bin',
	'stopvm.response.bin',
	'agent.server.bin',
] as const) {
	test(`the responses of ${name} encode to the recorded bytes`, t => {
		for (const message of requestsOf(name)) {
			t.deepEqual(encodeResponse(decodeResponse(message)), message);
		}
	});
}

test("the recorded CreateVM is for hypervisor.Hypervisor, without a deadline, in containerd's namespace", t => {
	const [message = Buffer.alloc(0)] = requestsOf('createvm.request.bin');
	const {payload, ...request} = decodeRequest(message);
	t.deepEqual(request, {
		service: 'hypervisor.Hypervisor',
		method: 'CreateVM',
		timeoutNano: 0n,
		metadata: [{key: 'containerd-namespace-ttrpc', value: 'k8s.io'}],
	});
	t.is(payload.length, 381);
	t.is(payload.buffer, message.buffer);
});

test('the recorded StartVM has a deadline of 600 s, less the microseconds that the shim took', t => {
	const [message = Buffer.alloc(0)] = requestsOf('startvm.request.bin');
	const {timeoutNano} = decodeRequest(message);
	t.true(timeoutNano > 599_900_000_000n && timeoutNano < 600_000_000_000n);
});

test('peeking at a recorded request gives the same parts as decoding it', t => {
	for (const message of requestsOf('agent.client.bin')) {
		const {service, method, timeoutNano} = decodeRequest(message);
		t.deepEqual(peekMethod(message), {service, method, timeoutNano});
		t.regex(service, /^grpc\.(AgentService|Health)$/);
	}
});

test('requests survive the wire, with any 64-bit deadline', t => {
	const request: fc.Arbitrary<Request> = fc.record({
		service: text,
		method: text,
		payload: bytesOf,
		timeoutNano: int64,
		metadata: fc.array(fc.record({key: text, value: text}), {maxLength: 5}),
	});
	fc.assert(
		fc.property(request, sent => {
			t.deepEqual(decodeRequest(encodeRequest(sent)), sent);
		}),
	);
});

test('responses survive the wire, with any status', t => {
	const status = fc.record({
		code: fc.integer(),
		message: text,
		details: fc.array(fc.record({typeUrl: text, value: bytesOf}), {minLength: 1, maxLength: 3}),
	});
	fc.assert(
		fc.property(status, bytesOf, (sent, payload) => {
			t.deepEqual(decodeResponse(encodeResponse({status: sent, payload})), {status: sent, payload});
		}),
	);
});

test('an empty success is no bytes', t => {
	t.is(encodeResponse({payload: Buffer.alloc(0)}).length, 0);
	t.deepEqual(decodeResponse(Buffer.alloc(0)), {payload: Buffer.alloc(0)});
});

test('unknown fields of every wire type are skipped', t => {
	const unknown = Buffer.concat([
		Buffer.from('f80105', 'hex'), // 31: varint
		Buffer.from('f9010102030405060708', 'hex'), // 31: 64 bits
		Buffer.from('fa0102abcd', 'hex'), // 31: length-delimited
		Buffer.from('fb01f80105fc01', 'hex'), // 31: group
		Buffer.from('fd0101020304', 'hex'), // 31: 32 bits
		Buffer.from('0807', 'hex'), // 1 as a varint: not the string that we know
	]);
	const known = encodeRequest({service: 's', method: 'm', payload: Buffer.from('p'), timeoutNano: 1n, metadata: []});
	t.deepEqual(decodeRequest(Buffer.concat([unknown, known, unknown])), decodeRequest(known));
	t.deepEqual(decodeResponse(Buffer.concat([Buffer.from('f80105', 'hex')])), {payload: Buffer.alloc(0)});
});

const malformed = {
	'a string longer than the message': '0a05',
	'a length of 4 GiB': '0affffffff0f',
	'a tag that is cut': '80',
	'a number that is cut at the end': '2080808080',
	'a number of eleven bytes': '20ffffffffffffffffffff01',
	'field number 0': '0000',
	'a group that does not end': 'fb01',
	'the end of a group that did not begin': 'fc01',
	'a reserved wire type': '0f',
	'metadata that is cut': '2a020a05',
} as const;
for (const [what, hex] of Object.entries(malformed)) {
	test(`a request with ${what} is refused as malformed`, t => {
		const error = t.throws(() => decodeRequest(Buffer.from(hex, 'hex')), {
			instanceOf: AdaptorError,
			message: /^Malformed ttrpc /,
		});
		t.is(error.code, 'invalid-argument');
	});
}

test('a peek at a malformed request gives nothing and throws nothing', t => {
	t.is(peekMethod(Buffer.from(malformed['a string longer than the message'], 'hex')), undefined);
});

test('a message with a million empty metadata entries is refused before it uses memory', t => {
	const entries = Buffer.alloc(2_000_000);
	for (let at = 0; at < entries.length; at += 2) {
		entries[at] = 0x2a;
	}

	t.throws(() => decodeRequest(entries), {message: /more than 1024 entries/});
});

test('parsing stops early in a message with millions of fields, also if the fields are nested', t => {
	const many = (bytes: string): Buffer => Buffer.alloc(4_000_000, Buffer.from(bytes, 'hex'));
	// Where a reader goes on to the end it finds the code, or what is wrong there.
	const code = '0a02080d';
	for (const [what, fields] of Object.entries({
		numbers: '7801',
		'empty statuses': '0a00',
		'statuses of many fields': `0a8008${'7801'.repeat(512)}`,
	})) {
		t.is(peekStatus(Buffer.concat([many(fields), Buffer.from(code, 'hex')])), 0, what);
		t.throws(() => decodeResponse(many(fields)), {message: /more than 4096 fields/}, what);
	}

	const group = Buffer.concat([Buffer.from('7b', 'hex'), many('7801'), Buffer.from('7c', 'hex')]);
	t.is(peekStatus(Buffer.concat([group, Buffer.from(code, 'hex')])), 0);
	t.throws(() => decodeResponse(group), {message: /more than 4096 fields/});
	t.is(peekMethod(Buffer.concat([many('7801'), Buffer.from('0a0161', 'hex')])), undefined);
	t.is(peekStatus(Buffer.concat([many('7801').subarray(0, 4000), Buffer.from(code, 'hex')])), 13);
});

test('any bytes decode or are refused with a code', t => {
	fc.assert(
		fc.property(fc.uint8Array({maxLength: 100}), bytes => {
			for (const decode of [decodeRequest, decodeResponse]) {
				try {
					decode(Buffer.from(bytes));
				} catch (error) {
					t.true(error instanceof AdaptorError && error.code === 'invalid-argument');
				}
			}

			peekMethod(Buffer.from(bytes));
		}),
		{numRuns: 10_000},
	);
});

test("status codes are google.rpc.Code's", t => {
	t.is(statusCode.resourceExhausted, 8);
	t.is(statusCode.unimplemented, 12);
	t.is(statusCode.unauthenticated, 16);
});

test('the code of a status is seen without decoding the response, and bytes that are none have none', t => {
	fc.assert(
		fc.property(fc.integer({min: -(2 ** 31), max: 2 ** 31 - 1}), text, bytesOf, (code, message, payload) => {
			t.is(peekStatus(encodeResponse({status: {code, message}, payload})), code);
			t.is(peekStatus(encodeResponse({payload})), 0);
		}),
	);
	fc.assert(
		fc.property(bytesOf, bytes => {
			t.notThrows(() => peekStatus(bytes));
		}),
	);
});
