import test from 'ava';
import {byteSize} from '../../src/core/byte-size.ts';

test('a size has at most three figures, in the appropriate unit', t => {
	t.deepEqual([0n, 999n, 1023n, 1024, 1536, 1_500_000n, 150n << 20n, 3n << 30n, 3n << 40n, 1n << 50n].map(byteSize), [
		'0 B',
		'999 B',
		'1 KiB',
		'1 KiB',
		'1.5 KiB',
		'1.43 MiB',
		'150 MiB',
		'3 GiB',
		'3 TiB',
		'1 PiB',
	]);
});
