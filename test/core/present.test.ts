import test from 'ava';
import {present} from '../../src/core/present.ts';

test('only undefined is left out', t => {
	t.deepEqual(present({a: undefined, b: null, c: 0, d: '', e: false}), {b: null, c: 0, d: '', e: false});
});
