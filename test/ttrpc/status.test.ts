import {status} from '@grpc/grpc-js';
import test from 'ava';
import {statusCode, statusName, statusOf, TtrpcError} from '../../src/ttrpc/status.ts';

const numbers = Object.entries(status).filter((entry): entry is [string, number] => typeof entry[1] === 'number');

test('every number has the name that gRPC gives it, and no other number has one', t => {
	t.deepEqual(
		Object.values(statusCode),
		numbers.map(([, number]) => number),
	);
	for (const [name, number] of numbers) {
		t.is(statusName(number), name);
	}

	t.is(statusName(17), '17');
	t.is(statusName(-1), '-1');
});

test('a status becomes an error code that maps back to it, if gRPC gives the status a meaning', t => {
	for (const [name, number] of numbers.filter(([each]) => !['OK', 'UNKNOWN', 'OUT_OF_RANGE'].includes(each))) {
		const {code} = new TtrpcError({code: number, message: ''});
		t.is(statusOf(code), number, name);
	}

	t.is(new TtrpcError({code: statusCode.outOfRange, message: ''}).code, 'invalid-argument');
	t.is(new TtrpcError({code: statusCode.unknown, message: ''}).code, 'internal');
	t.is(new TtrpcError({code: 99, message: ''}).code, 'internal');
});
